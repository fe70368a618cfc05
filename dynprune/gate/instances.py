"""Which rows of a tensor belong to which instance of the batch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from dynprune.errors import GateError

__all__ = ["InstanceLayout", "batch_of", "from_instances", "to_instances"]


@dataclass(frozen=True)
class InstanceLayout:
    """Where the batch is in the tensors that a group's layers see.

    Attributes:
        axis: 0, or 1 for sequence-first models (T, B, C).
        folded: whether axis 0 is B * r with all r rows of an instance side by side (windows,
            patches); the number of instances then comes from the model's own input.
    """

    axis: int = 0
    folded: bool = False

    def __post_init__(self) -> None:
        if type(self.axis) is not int or self.axis not in (0, 1) or type(self.folded) is not bool:
            raise GateError(
                f"layout axis={self.axis!r}, folded={self.folded!r}: axis is 0 or 1, folded a bool."
            )


def to_instances(x: Tensor, instances: int, layout: InstanceLayout) -> Tensor:
    """View (..., C) as (B, T, C).

    Args:
        x: rows of tokens.
        instances: B; where it is the number of tokens, each of them is an instance, (B * T, 1, C).
        layout: where the batch is in ``x``.

    Raises:
        GateError: where the rows do not divide into ``instances``.
    """
    if layout.axis == 1:
        x = x.transpose(0, 1)
    if x.shape[0] == instances and x.dim() == 3:
        return x
    if isinstance(instances, int) and instances == 0:
        return x.reshape(0, max(1, math.prod(x.shape[1:-1])), x.shape[-1])
    each = instances > x.shape[0]
    if layout.axis == 0 and (
        math.prod(x.shape[:-1]) != instances if each else x.shape[0] % instances
    ):
        raise GateError(
            f"A gated layer got {x.shape[0]} rows, which do not divide into the {instances} "
            "inputs its gate selected neurons for. Call the whole model, not a part of it."
        )
    return x.reshape(instances, -1, x.shape[-1])


def from_instances(y: Tensor, like: Tensor, layout: InstanceLayout) -> Tensor:
    """Undo `to_instances` for a result (B, T, K) of an input shaped as ``like``."""
    if layout.axis == 1:
        y = y.reshape(like.shape[1], like.shape[0], *like.shape[2:-1], y.shape[-1])
        return y.transpose(0, 1)
    return y.reshape(*like.shape[:-1], y.shape[-1])


def batch_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return the batch of a call: the first axis of the first tensor in its arguments, or 1."""
    for leaf in pytree.tree_leaves((args, dict(kwargs))):
        if isinstance(leaf, Tensor) and leaf.dim():
            return leaf.shape[0]
    return 1
