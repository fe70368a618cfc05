"""One call of a model: the arguments that tracing, verification and counting run it with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["Example", "Ids"]

HIDDEN = 1e3  # what is added to a score hides it from this size on

Ids = Literal["turned", "columns", "first", "kept"]
"""How the whole numbers of a call vary between the instances that are made of it."""


@dataclass(frozen=True)
class Example:
    """Positional and keyword arguments of one call of a model.

    Attributes:
        args: positional arguments; tensors have the batch as their first axis.
        kwargs: keyword arguments, likewise.

    Example:
        >>> Example((torch.zeros(1, 3, 4, 4),)).batched(2).batch
        2
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def run(self, model: nn.Module) -> Any:
        """Call ``model`` with these arguments."""
        return model(*self.args, **self.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in pytree order."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    @property
    def batch(self) -> int:
        """Instances in the call: the first axis of the first tensor that has one."""
        return next((t.shape[0] for t in self.tensors if t.dim()), 1)

    def batched(self, instances: int, *, seed: int = 0, ids: Ids = "turned") -> "Example":
        """Make a call with ``instances`` different instances out of this one.

        Every tensor whose first axis is the batch is repeated. Floating-point tensors then get
        their own noise per instance. Integer tensors are turned along their last axis; where that
        has one place (ids of one column, time steps) each instance gets another of the values that
        are there, or one just below. Masks (all ones, boolean, called so, or added to scores) stay
        as they are.

        Args:
            instances: batch of the new call.
            seed: of the noise.
            ids: ``turned`` as above, ``columns`` to give every place another value of its own
                column (fields that know other numbers each), ``first`` to turn those of the first
                tensor alone (the others may be places or edges in order), or ``kept`` as they are.
        """
        wide = self._repeated(instances)
        leaves, spec = pytree.tree_flatten_with_path((self.args, dict(self.kwargs)))
        others = pytree.tree_leaves((wide.args, dict(wide.kwargs)))
        generator = torch.Generator().manual_seed(seed)
        numbers: list[int] = []
        marks: list[int] = []
        varied = False
        for place, (path, given) in enumerate(leaves):
            leaf = others[place]
            if leaf is given or not leaf.numel() or leaf.dtype == torch.bool or _is_added(given):
                continue
            if leaf.is_floating_point():
                noise = torch.randn(leaf.shape, generator=generator).to(leaf)
                others[place] = leaf + noise * leaf.std(correction=0).clamp_min(0.1)
                varied = True
            elif ids != "kept" and "mask" not in str(path[-1:]):
                one_column = leaf.dim() == 1 or leaf.shape[-1] == 1
                (numbers if one_column or leaf.max() > 1 else marks).append(place)
        places = numbers or (marks if not varied else [])
        for place in places[:1] if ids == "first" else places:
            given, leaf = leaves[place][1], others[place]
            if leaf.dim() == 1 or leaf.shape[-1] == 1:
                others[place] = _other_column(leaf, given, seed)
            elif ids in ("turned", "first"):
                others[place] = _turned(leaf, given, seed)
            else:
                columns = zip(leaf.unbind(-1), given.unbind(-1), strict=True)
                others[place] = torch.stack([_other_column(*c, seed) for c in columns], -1)
        return Example(*pytree.tree_unflatten(others, spec))

    def _repeated(self, instances: int) -> "Example":
        """Repeat every tensor whose first axis is the batch."""
        batch = self.batch

        def spread(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != batch:
                return leaf
            repeats = -(-instances // batch) if batch else 0
            return leaf.repeat(repeats, *[1] * (leaf.dim() - 1))[:instances].clone()

        return Example(*pytree.tree_map(spread, (self.args, dict(self.kwargs))))

    def to(self, device: torch.device | str) -> "Example":
        """Move every tensor to ``device``."""
        move = pytree.tree_map_only(Tensor, lambda t: t.to(device), (self.args, dict(self.kwargs)))
        return Example(*move)


def _is_added(given: Tensor) -> bool:
    """Return whether a tensor is a mask that is added to scores: zeros and a number far below."""
    if not given.is_floating_point():
        return False
    hidden = given <= -HIDDEN
    return bool(hidden.any()) and bool((hidden | (given == 0)).all())


def _known(given: Tensor) -> list[int]:
    """Return values that a model is sure to take: those that are there, or some just below."""
    values = [int(value) for value in given.unique().tolist()]
    if len(values) > 1 or values[0] < 0:
        return values
    top = values[0]
    return [top, top - 1, top - 2] if top > 1 else [top, 1 - top]


def _other_column(wide: Tensor, given: Tensor, seed: int) -> Tensor:
    """Return each instance's one number another value, and another one for each seed."""
    known = torch.tensor(_known(given)).to(wide)
    first = (wide[:1, ..., None] == known).int().argmax(-1)
    step = torch.arange(len(wide)).add(seed).view(-1, *[1] * (wide.dim() - 1)).to(wide.device)
    return known[(first + step) % len(known)]


def _turned(wide: Tensor, given: Tensor, seed: int) -> Tensor:
    """Turn each instance along its last axis, and further for each seed; alike numbers change."""
    if bool((given == given.flatten()[0]).all()):
        known = torch.tensor(_known(given)).to(wide)
        first = torch.arange(wide.shape[-1]).to(wide.device) == 0
        wide = torch.where(first, known[1 % len(known)], wide)
    return torch.stack([row.roll(i + seed, -1) for i, row in enumerate(wide.unbind(0))])
