"""Any model as a task: calls that a function of the user's yields, and how close outputs stay."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynprune.data import VOID
from dynprune.data.calls import CallBatches, CallData, is_function, open_calls
from dynprune.errors import DynpruneError, InputError, UsageError
from dynprune.example import Example
from dynprune.host.imports import import_function
from dynprune.host.modes import at_inference
from dynprune.host.outputs import tensors_of
from dynprune.tasks.logits import label_map, logits_of
from dynprune.tasks.task import Exhibit, Kind, Prediction, Progress, Reading, Samples, Scores
from dynprune.tasks.vectors import WORDS
from dynprune.tasks.written import write_tensors

__all__ = ["KIND", "AnyTask", "output_tensors"]

_LEAST_POWER = 1e-12


@dataclass(frozen=True)
class AnyTask:
    """Calls of any model, with labels or without.

    Attributes:
        data: the calls.
        reading: how they become batches.
        scored: whether the labels can be compared with the model's logits; see `settled`.
    """

    data: CallData
    reading: Reading
    scored: bool = False

    name = "any"
    unit = "calls"
    metric = "cosine"
    compares = True
    ignore_index = VOID

    def __len__(self) -> int:
        return len(self.data)

    @property
    def names(self) -> Sequence[str]:
        """The number of every call."""
        return [f"call {index}" for index in range(len(self))]

    def settled(self, model: nn.Module) -> "AnyTask":
        """Return the data, once the first call has run: labels count where logits fit them."""
        device = str(next(model.parameters()).device)
        with at_inference(model), torch.no_grad():
            try:
                output = self.call(0, device).run(model)
            except Exception as error:  # the model's own code refuses in its own words
                if isinstance(error, DynpruneError):
                    raise
                raise InputError(
                    f"the model does not take the first call of {self.data.name}: "
                    f"{type(error).__name__}: {error}"
                ) from error
        if not output_tensors(output):
            raise InputError(
                f"the model returns no tensor of real numbers for the first call of "
                f"{self.data.name}: there is nothing to compare"
            )
        return replace(self, scored=bool(self.data.labels) and self._fits(output))

    def _fits(self, output: Any) -> bool:
        labels = self.data.labels[0]
        logits = logits_of(output)
        whole = not labels.is_floating_point() and logits.is_floating_point()
        return whole and logits.dim() == labels.dim() + 1 and logits.dim() in (2, 4)

    def call(self, index: int, device: str = "cpu") -> Example:
        """Return one of the calls."""
        return self.data.calls[index].to(device)

    def samples(self) -> Samples:
        """Return instances of the calls, joined where they are alike."""
        return CallBatches(self.data, self.reading.batch_size, self.reading.seed)

    def evaluate(
        self,
        model: nn.Module,
        dense: nn.Module | None = None,
        *,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Scores:
        """Compare every floating-point output, instance by instance; and labels, where they fit."""
        assert dense is not None
        cosines: list[Tensor] = []
        errors: list[Tensor] = []
        right = known = 0
        with at_inference(model), at_inference(dense), torch.no_grad():
            for index in range(len(self)):
                call = self.call(index, device)
                output = call.run(model)
                cosine, error = _closeness(output, call.run(dense), call.batch)
                cosines.append(cosine.cpu())
                errors.append(error.cpu())
                if self.scored:
                    labels = self.data.labels[index]
                    counts = labels != self.ignore_index
                    found = _classes(logits_of(output), labels).cpu()
                    right += int(((found == labels) & counts).sum())
                    known += int(counts.sum())
                if progress is not None:
                    progress(index + 1, len(self))
        close = torch.cat(cosines)
        figures = {
            "cosine": float(close.mean()),
            "worst": float(close.min()),
            "error": float(torch.cat(errors).mean()),
        }
        if known:
            figures["accuracy"] = right / known
        return Scores(len(self), figures, WORDS)

    def exhibits(
        self,
        student: nn.Module,
        dense: nn.Module | None,
        *,
        count: int,
        device: str = "cpu",
    ) -> Sequence[Exhibit]:
        """Show the shapes of a few calls' outputs, and how close each is."""
        shown = []
        for index in range(min(count, len(self))):
            call = self.call(index, device)
            with at_inference(student), torch.no_grad():
                output = call.run(student)
            shapes = ", ".join(str(list(t.shape)) for t in output_tensors(output))
            rows = [("outputs", shapes)]
            if dense is not None:
                with at_inference(dense), torch.no_grad():
                    cosine, error = _closeness(output, call.run(dense), call.batch)
                rows += [("cosine", f"{cosine.mean():.4f}"), ("error", f"{error.mean():.4f}")]
            shown.append(Exhibit(self.names[index], rows=tuple(rows)))
        return shown

    def shares(self) -> Sequence[float] | None:
        """Return None: classes are not counted here."""
        return None

    def fingerprint(self) -> Any:
        """Return a digest of every call."""
        return self.data.fingerprint()


def output_tensors(output: Any) -> list[Tensor]:
    """Return the floating-point tensors of a model's output."""
    return [tensor for tensor in tensors_of(output) if tensor.is_floating_point()]


def _closeness(student: Any, dense: Any, batch: int) -> tuple[Tensor, Tensor]:
    """Return each instance's cosine and squared error in the dense output's power: ``(B,)`` each.

    Both are means over the output's tensors; one that has no batch is the same for all.
    """
    ours, theirs = output_tensors(student), output_tensors(dense)
    shapes = [[tuple(t.shape) for t in found] for found in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"the model's outputs have the shapes {shapes[0]}, the dense one's {shapes[1]}; "
            "compare a model with the one that it came from"
        )
    cosines, errors = [], []
    for s, t in zip(ours, theirs, strict=True):
        batched = s.dim() > 0 and s.shape[0] == batch
        one, other = (
            (x.float().flatten(1) if x.dim() > 1 else x.float()[:, None])
            if batched
            else x.float().reshape(1, -1).expand(batch, -1)
            for x in (s, t)
        )
        power = other.square().sum(1)
        still = (power < _LEAST_POWER) & (one.square().sum(1) < _LEAST_POWER)
        cosine = F.cosine_similarity(one, other, dim=1)
        cosines.append(torch.where(still, torch.ones_like(cosine), cosine))
        errors.append((one - other).square().sum(1) / power.clamp_min(_LEAST_POWER))
    return torch.stack(cosines).mean(0), torch.stack(errors).mean(0)


def _classes(logits: Tensor, labels: Tensor) -> Tensor:
    return label_map(logits, labels.shape[1:]) if logits.dim() == 4 else logits.argmax(1)


def _predict(
    model: nn.Module, inputs: Sequence[str], directory: Path, _reading: Reading, device: str
) -> Iterator[Prediction]:
    """Write the outputs of every call that functions yield, as safetensors."""
    for name in inputs:
        if not is_function(name):
            raise UsageError(
                f"{name!r} is no module:function; a model of any kind is run on the calls that a "
                "function of yours yields"
            )
        data = open_calls(name, None)
        for index, call in enumerate(data.calls):
            with at_inference(model), torch.no_grad():
                found = output_tensors(call.to(device).run(model))
            path = directory / f"{name.replace(':', '.')}-{index:04}.safetensors"
            write_tensors(path, {f"output{i}": tensor for i, tensor in enumerate(found)})
            shapes = [list(tensor.shape) for tensor in found]
            yield Prediction(
                f"{name}, call {index}", {"outputs": path}, {"shapes": shapes}, str(shapes)
            )


def _check(data: str, split: str) -> None:  # noqa: ARG001 - the function is run once a model is there
    if not is_function(data):
        raise UsageError(f"--data {data!r} is no module:function, and data.task: any needs one")
    import_function(data)


def _open(data: str, split: str, reading: Reading) -> AnyTask:
    return AnyTask(open_calls(data, split), reading)


def _recognises(data: str) -> bool:
    return is_function(data) and not Path(data).exists()


KIND = Kind(
    "any",
    "module:function, which yields calls",
    _recognises,
    _check,
    _open,
    _predict,
    pictures=False,
    brings_calls=True,
)
