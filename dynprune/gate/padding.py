"""Which tokens of a call are padding, read from the masks that its modules receive."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["PaddingMask", "masks_of", "real_tokens"]

_HIDDEN = -1e3  # an additive mask of attention is 0 where a token counts, and far below otherwise

_OTHERS = ("encoder_", "cross_", "memory_", "context_")
"""How the names of masks begin that say something of the tokens of another part of the model."""


@dataclass(frozen=True, eq=False)
class PaddingMask:
    """An argument of a call that may say which tokens are padding.

    Attributes:
        name: of the parameter.
        tensor: its value.
    """

    name: str
    tensor: Tensor


def masks_of(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    names: tuple[str, ...],
    *,
    padding_alone: bool,
) -> tuple[PaddingMask, ...]:
    """Return the masks among the arguments of a call, those of its own tokens first.

    Args:
        args: by position.
        kwargs: by name.
        names: of the positional parameters.
        padding_alone: count masks alone whose names say that they mark padding; torch's own
            modules have others of the same shape.
    """
    given = [*zip(names, args, strict=False), *kwargs.items()]
    wanted = "padding_mask" if padding_alone else "mask"
    masks = [
        PaddingMask(name, value)
        for name, value in given
        if wanted in name and "masked" not in name and isinstance(value, Tensor)
    ]
    if len(masks) < 2:
        return tuple(masks)
    own = [mask for mask in masks if not mask.name.startswith(_OTHERS)]
    others = [mask for mask in masks if mask.name.startswith(_OTHERS)]
    return (*own, *others)


def real_tokens(mask: PaddingMask) -> Tensor | None:
    """Read a mask as (B, T), true at tokens that are no padding; None for masks of other kinds.

    In transformers a mask marks the tokens that count, with ones or, where it is added to the
    scores of attention, with zeros; there it is (B, 1, 1, T) or (B, 1, queries, T), and a token
    counts where any query sees it. In torch's own modules a padding mask marks, or shifts by minus
    infinity, the tokens that do not count.
    """
    tensor = mask.tensor
    if "padding_mask" in mask.name:
        return tensor == 0 if tensor.dim() == 2 else None
    if tensor.dim() == 2:
        # Ones and zeros, or zeros and large negative numbers: a token that counts has the most.
        return tensor == tensor.amax(1, keepdim=True) if tensor.is_floating_point() else tensor != 0
    if tensor.dim() == 4 or (tensor.dim() == 3 and mask.name.endswith("attention_mask")):
        seen = tensor > _HIDDEN if tensor.is_floating_point() else tensor != 0
        return seen.flatten(1, -2).any(1)
    return None
