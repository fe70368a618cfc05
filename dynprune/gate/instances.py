"""Which rows of a tensor belong to which instance of the batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.errors import GateError

__all__ = ["CallRecorder", "InstanceLayout", "from_instances", "to_instances"]


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


@dataclass
class CallRecorder:
    """Forward pre-hook of the whole model: notes the instances and the padding of each call.

    Attributes:
        instances: batch of the call that runs.
        real: (B, T) mask of the tokens that are not padding, or None.
    """

    instances: int = 1
    real: Tensor | None = None

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Note what this call brings; changes neither arguments nor module."""
        leaves = pytree.tree_leaves((args, dict(kwargs)))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]
        if tensors:
            self.instances = tensors[0].shape[0]
        masks = [_real(k, v) for k, v in kwargs.items() if "mask" in k and isinstance(v, Tensor)]
        self.real = next((mask for mask in masks if mask is not None), None)

    def __getstate__(self) -> dict[str, Any]:
        """Give a copy no tensor of the last call, which may not be copied."""
        return {**self.__dict__, "real": None}


def _real(name: str, mask: Tensor) -> Tensor | None:
    """Read a mask of a call: (B, T), true at tokens that are not padding; None for other masks.

    In transformers a mask marks the tokens that count. In torch's own modules a padding mask marks,
    or shifts by minus infinity, those that do not.
    """
    if mask.dim() != 2:
        return None
    if "padding_mask" in name:
        return mask == 0
    return None if mask.is_floating_point() else mask


def to_instances(x: Tensor, instances: int, layout: InstanceLayout) -> Tensor:
    """View (..., C) as (B, T, C).

    Raises:
        GateError: where the rows do not divide into ``instances``.
    """
    if layout.axis == 1:
        x = x.transpose(0, 1)
    if x.shape[0] == instances and x.dim() == 3:
        return x
    if layout.axis == 0 and x.shape[0] % instances:
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
