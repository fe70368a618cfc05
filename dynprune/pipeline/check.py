"""Hold a user's own model to the laws, on the user's own inputs, beside its dense form."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dynprune.data import Preprocessing, SegmentationData
from dynprune.errors import DynpruneError, InputError, LawError, UsageError
from dynprune.example import Example
from dynprune.gate import is_gated, remove
from dynprune.gate.route import has_experts
from dynprune.host.modes import at_inference
from dynprune.laws import (
    EXPORT_LAWS,
    LAWS,
    DenseNote,
    Law,
    Subject,
    Verdict,
    broken_laws,
    judge,
)
from dynprune.laws.subject import answer
from dynprune.measure.macs import without_gates
from dynprune.models import LoadedModel, build, provenance_of
from dynprune.rewrite import undo

__all__ = ["CheckReport", "check_calls", "check_model", "dense_form", "require_laws"]

CALLS = 3
"""Calls of the user's that laws are tried on, at most: every law runs each of them many times."""

Progress = Callable[..., None]


@dataclass(frozen=True)
class CheckReport:
    """What became of every law.

    Attributes:
        model: its name.
        verdicts: one a law, in the order in which they were tried.
    """

    model: str
    verdicts: tuple[Verdict, ...]

    @property
    def broken(self) -> tuple[Verdict, ...]:
        """The laws that are broken."""
        return tuple(verdict for verdict in self.verdicts if verdict.status == "broken")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document of ``dynprune check --json``."""
        return {"model": self.model, "laws": [verdict.to_json() for verdict in self.verdicts]}


def check_model(
    loaded: LoadedModel,
    calls: Sequence[Example],
    *,
    export: bool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """Hold a model to every law, beside its dense form; the model stays as it is.

    What is tried is tried on copies, so that it takes the memory of about four models.

    Args:
        loaded: gated, rewritten or dense.
        calls: of the user's own; the first few count. The loaded model's example where empty.
        export: try laws that trace the model, too: torch.export, torch.compile, ONNX.
        progress: called with ``(done, total, part=name)`` as laws are tried.

    Raises:
        InputError: where the dense form does not answer the calls.
    """
    laws: dict[str, Law] = {**LAWS, **(EXPORT_LAWS if export else {})}
    given = tuple(calls[:CALLS]) or (loaded.example,)
    model = copy.deepcopy(loaded.module)
    dense = dense_form(model)
    anew, why_not = _built_anew(loaded, dense)
    verdicts = []
    with at_inference(model), at_inference(dense), tempfile.TemporaryDirectory() as directory:
        _require_answers(dense, given)
        subject = Subject(model, dense, given, Path(directory), anew=anew, why_not_anew=why_not)
        for number, (name, law) in enumerate(laws.items()):
            if progress is not None:
                progress(number, len(laws), part=name)
            verdicts.append(judge(name, law, subject))
    if progress is not None:
        progress(len(laws), len(laws))
    return CheckReport(loaded.name, tuple(verdicts))


def require_laws(model: nn.Module, note: DenseNote, *, whole: bool) -> None:
    """Hold a gated model to the quick laws on a small call; it stays as it is.

    Args:
        model: gated.
        note: of what the dense model did with the call.
        whole: whether it must be the dense model where nothing is skipped.

    Raises:
        LawError: where it breaks one.
    """
    broken = broken_laws(model, note, whole=whole)
    if broken:
        raise LawError(
            f"The gated {type(model).__name__} would be wrong, so it is not kept: "
            f"{'; '.join(broken[:3])}. This is a bug in dynprune: leave out groups with "
            "apply.ignore until these laws hold, and report it."
        )


def dense_form(model: nn.Module) -> nn.Module:
    """Return a copy of a model without gates and rewrites, with the weights that it has now.

    Of a model with experts it has the dense sizes, and weights of their neurons.
    """
    dense = without_gates(model) if has_experts(model) else copy.deepcopy(model)
    if is_gated(dense):
        remove(dense)
    undo(dense)
    return dense


def _built_anew(loaded: LoadedModel, dense: nn.Module) -> tuple[nn.Module | None, str]:
    """Build the architecture a second time and give it the weights, or say why that is not done."""
    try:
        source = provenance_of(loaded.module).source
    except UsageError:
        source = loaded.source
    if source.kind != "transformers":
        return None, f"{source.factory} makes the model, and is not called again"
    types = {t.dtype for t in dense.parameters()}
    if types != {torch.float32}:
        return None, "the model's weights are not all of float32"
    try:
        anew = build(source)
        anew.load_state_dict(dense.state_dict())
    except (DynpruneError, RuntimeError) as error:  # narrowed for good, or a head added by hand
        return None, f"the recorded architecture does not take the weights: {str(error)[:120]}"
    return anew.to(next(dense.parameters()).device).eval(), ""


def _require_answers(dense: nn.Module, calls: Sequence[Example]) -> None:
    for number, call in enumerate(calls, 1):
        try:
            found = answer(dense, call)
        except Exception as error:  # the model's own code refuses in its own words
            raise InputError(
                f"the model, without gates, does not take call {number}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not found:
            raise InputError(f"the model returns no tensor for call {number}: nothing to compare")


def check_calls(
    data: SegmentationData, preprocessing: Preprocessing, example: Example, *, device: str = "cpu"
) -> Iterator[Example]:
    """Yield calls with a data set's pictures, evenly over it, resized to the example's size.

    Args:
        data: where the pictures are.
        preprocessing: how they go in.
        example: a call of the model with pictures (B, 3, H, W).
        device: where they go.

    Raises:
        UsageError: where the model does not take pictures.
    """
    sizes = [t.shape[-2:] for t in example.tensors if t.dim() == 4]
    if not sizes:
        raise UsageError("--data holds pictures, and this model's example has none; leave it out")
    count = min(CALLS, len(data))
    for position in range(count):
        picture = preprocessing(data.picture(position * len(data) // count), device)
        picture = F.interpolate(picture, tuple(sizes[0]), mode="bilinear", antialias=True)
        yield _with_picture(example, picture)


def _with_picture(example: Example, picture: torch.Tensor) -> Example:
    """Return one row of an example with this picture in place of its own."""

    def put(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return picture if value.dim() == 4 else value[:1]

    kwargs: Mapping[str, Any] = {name: put(value) for name, value in example.kwargs.items()}
    return Example(tuple(map(put, example.args)), kwargs)
