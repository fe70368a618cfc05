"""Follow what a layer gives to the place where it is added to a residual stream."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dynprune.gate.binding import Bound
from dynprune.gate.instances import to_instances
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.masked import mask_inputs
from dynprune.host.resume import Reached

__all__ = ["Added", "Follow", "Seen", "correction", "watching"]

_MOVES = {
    "alias", "clone", "contiguous", "detach", "flatten", "permute", "reshape", "_reshape_alias",
    "roll", "slice", "squeeze", "t", "transpose", "unflatten", "unsqueeze", "view", "_unsafe_view",
}  # fmt: skip
"""Operations that move elements, and change none."""

LEAST_SCALE = 1e-3  # over the largest: channels that hardly reach the stream do not answer for it

Step = tuple[bool, Callable[[Tensor], Tensor]]
"""What happens on the way, done to any tensor; the flag says whether elements move by it."""


@dataclass(frozen=True)
class Added:
    """How a layer's output is added to a stream.

    Attributes:
        stream: that it is added to, before the addition.
        shape: of the layer's output.
        steps: what happens to it before it is added.
    """

    stream: Tensor
    shape: torch.Size
    steps: tuple[Step, ...]

    @property
    def place(self) -> Tensor:
        """For every element of the stream, which one of the layer's output is added to it."""
        place = torch.arange(self.shape.numel(), device=self.stream.device).view(self.shape)
        for moves, step in self.steps:
            place = step(place) if moves else place
        return place

    @property
    def scale(self) -> Tensor:
        """For every element of the stream, the factor before what is added to it."""
        scale = torch.ones(self.shape, dtype=self.stream.dtype, device=self.stream.device)
        for _, step in self.steps:
            scale = step(scale)
        return scale


class Follow(TorchDispatchMode):
    """Follow one tensor through whatever runs, until something is done with it.

    Args:
        done: called when that is known; it may raise to end the run.

    Attributes:
        added: where it was added; None where something else was done with it.
        over: whether that is known.
    """

    def __init__(self, done: Callable[[], None]) -> None:
        super().__init__()
        self.done = done
        self.added: Added | None = None
        self.over = False
        self._shape = torch.Size()
        self._channels = 0
        self._at: dict[int, tuple[Tensor, tuple[Step, ...]]] = {}

    def start(self, output: Tensor, channels: int) -> None:
        """Follow this tensor from now on.

        Args:
            output: of a layer.
            channels: of the layer, whose factors may differ.
        """
        self._shape, self._channels = output.shape, channels
        self._at = {id(output): (output, ())}

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and see what it does to what is followed."""
        kwargs = kwargs or {}
        if not self._at or self.over:
            return func(*args, **kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        found = [self._at[id(x)] for x in leaves if isinstance(x, Tensor) and id(x) in self._at]
        if not found:
            return func(*args, **kwargs)
        here, steps = found[0]
        step = self._step(func, args, kwargs, here) if len(found) == 1 else None
        if step is None:
            other = _addend(func, args, kwargs, here) if len(found) == 1 else None
            self._end(other, steps)
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        self._at[id(result)] = (result, (*steps, step))
        return result

    def _step(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], here: Tensor
    ) -> Step | None:
        """Return what an operation does where it moves, scales, or adds what is always the same."""
        name = _name(func)
        if name in _MOVES and args[0] is here:
            rest = args[1:]
            return True, lambda x: func(x, *rest, **kwargs)
        if name not in {"mul", "add"} or kwargs or len(args) != 2:
            return None
        other = args[1] if args[0] is here else args[0]
        if isinstance(other, Tensor) and other.numel() not in {1, self._channels}:
            return None
        if isinstance(other, Tensor) and other.numel() == here.numel():
            return None
        return False, (lambda x: x) if name == "add" else (lambda x: x * other)

    def _end(self, other: Tensor | None, steps: tuple[Step, ...]) -> None:
        self.over, self._at = True, {}
        if other is not None:
            self.added = Added(other, self._shape, steps)
        self.done()


def _addend(func: Any, args: Sequence[Any], kwargs: Any, here: Tensor) -> Tensor | None:
    """Return what an operation adds to what is followed; None where it does something else."""
    if _name(func) != "add" or kwargs or len(args) != 2:
        return None
    other = args[1] if args[0] is here else args[0]
    same = isinstance(other, Tensor) and other.shape == here.shape and other is not here
    return other if same and other.is_floating_point() else None


def _name(func: Any) -> str:
    name = str(func._schema.name).partition("::")[2]
    return name[:-1] if func._schema.is_mutable and name.endswith("_") else name


@dataclass(frozen=True)
class Seen:
    """What one consumer did in one run.

    Attributes:
        z: (B, T, inputs) that it multiplied.
        real: (B, T) tokens that are no padding; None where all count.
        output: of the layer, as it gives it.
        added: where that was added to a stream.
    """

    z: Tensor
    real: Tensor | None
    output: Tensor
    added: Added | None

    @property
    def is_finite(self) -> bool:
        """Whether all that takes part is a number."""
        parts = [self.z if self.real is None else self.z[self.real.bool()]]
        parts += [] if self.added is None else [self.added.stream]
        return all(bool(part.isfinite().all()) for part in parts)


@contextmanager
def watching(layer: DynamicLinear) -> Iterator[Callable[[], Seen]]:
    """Note what a layer reads and gives, and end the run where its output was added."""
    read: list[tuple[Tensor, Tensor | None]] = []
    made: list[Tensor] = []

    def reached() -> None:
        raise Reached

    follow = Follow(reached)

    def before(module: DynamicLinear, args: tuple[Tensor, ...]) -> None:
        read.append(_read(module, args[0]))

    def after(module: DynamicLinear, _args: tuple[Tensor, ...], output: Tensor) -> None:
        made.append(output)
        follow.start(output, module.out_features)

    with ExitStack() as stack:
        for handle in (
            layer.register_forward_pre_hook(before),
            layer.register_forward_hook(after),
        ):
            stack.callback(handle.remove)
        stack.enter_context(follow)
        yield lambda: Seen(*read[0], made[0], follow.added)


def _read(layer: DynamicLinear, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what a layer multiplies by its weight, (B, T, inputs), and which tokens count."""
    neurons = layer.reads[0].neurons
    call = neurons.scope.current()
    bounds = [
        Bound(
            call.selection(binding.neurons),
            None if binding.index is None else getattr(layer, binding.index),
            binding.carries_value,
        )
        for binding in layer.reads
    ]
    x = x.movedim(1, -1) if layer.layout == "pointwise" else x
    tokens = to_instances(x, bounds[0].selection.batch, neurons.layout)
    return mask_inputs(tokens, bounds), call.real(tokens)


def correction(output: Tensor, dense: Added | None, pruned: Added | None) -> Tensor:
    r"""Return what a layer has to give more, so that the stream after it is the dense one.

    .. math:: r_p + L(y + c) = r + L(y)

    with r and r_p the dense and the pruned stream, and L what happens on the way to it.

    Args:
        output: y of the layer in the dense model.
        dense: how it is added there.
        pruned: how it is added in the pruned model.

    Returns:
        c, of the output's shape; zero where nothing is added, or not alike.
    """
    c = torch.zeros_like(output)
    if dense is None or pruned is None or dense.stream.shape != pruned.stream.shape:
        return c
    place, scale = dense.place, dense.scale
    if not (torch.equal(place, pruned.place) and torch.equal(scale, pruned.scale)):
        return c
    counts = scale.abs() > LEAST_SCALE * scale.abs().max()
    lacks = (dense.stream - pruned.stream) / torch.where(counts, scale, torch.ones_like(scale))
    flat = c.view(-1)
    flat[place.flatten()] = torch.where(counts, lacks, torch.zeros_like(lacks)).flatten()
    return c
