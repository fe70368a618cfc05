"""What one run of a model shows: a sketch of what its layers get, and of its outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.graph.influence import Sketch, reached, sketch
from dynprune.host.arguments import copied
from dynprune.host.chance import seeded
from dynprune.host.outputs import tensors_of
from dynprune.host.trial import trial

__all__ = ["Changes", "Seen", "Shift", "changes", "observe", "rows_of_output"]

#: Outputs up to this many numbers are compared number by number.
MOST_NUMBERS = 1 << 21


@dataclass
class Seen:
    """What one run showed.

    Attributes:
        inputs: module -> its input in each of its calls, the modules in the order of running.
        outputs: the model's outputs.
        looked_up: the ids of each call of an embedding, in the order of running.
    """

    inputs: dict[str, list[Sketch]] = field(default_factory=dict)
    outputs: list[Sketch] = field(default_factory=list)
    looked_up: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Shift:
    """Noise on what an embedding gives for some tokens.

    Attributes:
        lookup: place of its call among all calls of embeddings.
        places: of the tokens, along axis 1.
    """

    lookup: int
    places: Tensor

    def __call__(self, embedded: Tensor) -> Tensor:
        """Return a changed copy of (B, T, C) embeddings."""
        window = embedded.index_select(1, self.places.to(embedded.device))
        noise = torch.randn(window.shape, generator=torch.Generator().manual_seed(0)).to(window)
        other = window + 2 * noise * embedded.std(correction=0).clamp_min(0.01)
        return embedded.index_copy(1, self.places.to(embedded.device), other)


@dataclass
class Changes:
    """Which rows differ between two runs; None where the shapes do.

    Attributes:
        inputs: module -> rows of its input in each of its calls.
        outputs: rows of each output.
    """

    inputs: dict[str, list[Tensor | None]]
    outputs: list[Tensor | None]

    @property
    def reach_all_outputs(self) -> bool:
        """Whether every row of every output changed."""
        return bool(self.outputs) and all(
            rows is not None and bool(rows_of_output(rows).all()) for rows in self.outputs
        )

    def __bool__(self) -> bool:
        """Whether anything changed at all."""
        every = [*self.outputs, *(rows for calls in self.inputs.values() for rows in calls)]
        return any(rows is None or bool(rows.any()) for rows in every)


def observe(
    model: nn.Module,
    watched: Mapping[str, nn.Module],
    example: Example,
    shift: Shift | None = None,
    disturbed: nn.Module | None = None,
) -> Seen:
    """Run a model once and sketch what the watched modules get.

    Args:
        model: in eval mode.
        watched: name -> module.
        example: the call; caches in it are copied, since models write into them.
        shift: what to do to an embedding on the way.
        disturbed: a module whose output is multiplied by random numbers.
    """
    seen = Seen()

    def note(name: str, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim() > 1]
        if given and not is_functorch_wrapped_tensor(given[0]):
            x = given[0]
            channels = 1 if isinstance(module, _ConvNd) and x.dim() == module.weight.dim() else -1
            seen.inputs.setdefault(name, []).append(sketch(x, channels))

    def embedded(_: nn.Module, args: Any, output: Any) -> Any:
        place = len(seen.looked_up)
        ids = args[0] if args else None  # some embed a size and not ids
        known = ids.detach().clone() if isinstance(ids, Tensor) else torch.empty(0)
        seen.looked_up.append(known)
        return shift(output) if shift is not None and shift.lookup == place else output

    handles = [
        module.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, module in watched.items()
    ]
    handles += [
        module.register_forward_hook(embedded)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    ]
    if disturbed is not None:
        handles.append(disturbed.register_forward_hook(_disturb))
    try:
        with trial(model), seeded(0):  # chance falls alike in every run
            args, kwargs = copied((example.args, dict(example.kwargs)))
            output = model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    seen.outputs = [_of_output(tensor) for tensor in tensors_of(output)]
    return seen


def _disturb(_module: nn.Module, _args: Any, output: Any) -> Any:
    """Change every number of an output, zeros too."""
    generator = torch.Generator().manual_seed(1)

    def noisy(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator).to(x)
        return x * (1 + noise) + noise * x.std(correction=0).clamp_min(0.01)

    return pytree.tree_map_only(Tensor, lambda x: noisy(x) if x.is_floating_point() else x, output)


def _of_output(tensor: Tensor) -> Sketch:
    """Sketch an output, whose axis of channels is not known: none is taken where it is small."""
    if tensor.dim() < 2 or tensor.numel() <= MOST_NUMBERS:
        eps = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0
        whole = torch.nan_to_num(tensor.detach()) if eps else tensor.detach()
        return Sketch(whole.clone()[..., None], eps)
    return sketch(tensor)


def changes(before: Seen, after: Seen) -> Changes:
    """Compare two runs, in the order of the first."""
    inputs = {
        name: _paired(calls, after.inputs.get(name, [])) for name, calls in before.inputs.items()
    }
    return Changes(inputs, _paired(before.outputs, after.outputs))


def _paired(before: list[Sketch], after: list[Sketch]) -> list[Tensor | None]:
    if len(before) != len(after):
        return [None] * len(before)
    return [reached(b, a) for b, a in zip(before, after, strict=True)]


def rows_of_output(changed: Tensor, length: int | None = None) -> Tensor:
    """Leave the channels out of the numbers of an output that changed.

    Args:
        changed: bool, of the output's shape.
        length: of the sequence; an output with an axis of tokens stays as it is.
    """
    if length is not None and length > 1 and length in changed.shape:
        return changed
    if changed.dim() < 2:
        return changed.any().reshape(1)
    return changed.any(1 if changed.dim() > 3 else -1)
