"""Which rows of a tensor a change reaches, and what that says of the order of time in it."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Order", "Parts", "Sketch", "order_in", "order_of", "reached", "sketch"]

Order = Literal["untouched", "first", "last", "whole", "apart", "causal", "mutual", "near"]
"""What changes of the first and of the last tokens show in one tensor.

``untouched``: neither reaches it; ``first``: only the first tokens do;
``last``: only the last ones do. ``whole``: the last tokens
reach every row that the first ones reach. ``apart``: no row is reached by both. ``causal``: the
first tokens reach rows of later ones, and the last tokens no row of earlier ones. ``mutual``: the
last tokens reach some rows of earlier ones. ``near``: each reaches some rows, and which are earlier
than the last tokens is not known, since the rows are no tokens.
"""

#: Numbers that stand for the channels of a row, each a random sum of them.
_SUMS = 4

#: Fraction of the largest change in a tensor below which a change is rounding: a number taken
#: over everything (a softmax minus its maximum) moves all rows by that.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Sketch:
    """A tensor with its channels summed up at random: what changes a row changes its sums.

    Attributes:
        rows: (..., 4) sums, or the integers themselves with one more axis.
        eps: rounding of the tensor's own type; 0 for integers.
    """

    rows: Tensor
    eps: float


class Parts(NamedTuple):
    """How a sequence was changed.

    Attributes:
        length: tokens in it.
        first: how many stand up to the last one of the first ones, which one run changed.
        last: how many stand from the first one of the last ones, which another changed.
        ordered: whether the rows of one instance stand alone, in the order of the tokens.
        is_picture: whether they are rows of pixels, which narrow convolutions mix.
    """

    length: int
    first: int
    last: int
    ordered: bool = True
    is_picture: bool = False


def sketch(tensor: Tensor, channels: int = -1) -> Sketch:
    """Sum the channels of a tensor up at random.

    Args:
        tensor: (..., C) or any shape.
        channels: axis that is summed over.
    """
    if not tensor.is_floating_point():
        return Sketch(tensor.detach().clone().movedim(channels, -1), 0.0)
    eps = torch.finfo(tensor.dtype).eps
    wide = tensor.detach().movedim(channels, -1)
    wide = wide if wide.dtype == torch.float64 else wide.float()
    mixer = _mixer(wide.shape[-1]).to(wide)
    return Sketch(torch.nan_to_num(wide) @ mixer, eps)


@lru_cache(maxsize=64)
def _mixer(width: int) -> Tensor:
    return torch.randn(width, _SUMS, generator=torch.Generator().manual_seed(width))


def reached(before: Sketch, after: Sketch) -> Tensor | None:
    """Mark the rows that changed by more than rounding; None where the shape itself changed."""
    if before.rows.shape != after.rows.shape:
        return None
    if before.rows.numel() == 0:
        return torch.zeros(before.rows.shape[:-1], dtype=torch.bool)
    if not before.eps:
        return (before.rows != after.rows).any(-1)
    change = (after.rows - before.rows).abs().amax(-1)
    rounding = 4 * before.eps * before.rows.abs().max()
    return change > torch.maximum(_ROUNDING * change.max(), rounding)


def order_in(early: Tensor, late: Tensor, parts: Parts) -> Order:
    """Say what order of time a tensor shows, along each axis that may be one of tokens.

    Args:
        early: rows that a change of the first tokens reaches, of the tensor's shape without
            channels.
        late: the same of the last tokens.
        parts: which those are.
    """
    axes = [axis for axis, size in enumerate(early.shape) if size == parts.length > 1]
    if not axes:
        return order_of(early.flatten(), late.flatten(), parts)
    along = []
    for axis in axes:
        rows = [r.movedim(axis, 0).reshape(parts.length, -1).any(1) for r in (early, late)]
        along.append(order_of(rows[0], rows[1], parts._replace(ordered=True)))
    # Along an axis that is none of tokens everything is reached, which says nothing.
    ranks: tuple[Order, ...] = (
        "causal",
        "apart",
        "near",
        "mutual",
        "whole",
        "first",
        "last",
        "untouched",
    )
    return next(order for order in ranks if order in along)


def order_of(early: Tensor, late: Tensor, parts: Parts) -> Order:
    """Say what order of time rows show, (R,) each reached by the first or by the last tokens."""
    length, first, last, ordered, is_picture = parts
    only_early, only_late = early & ~late, late & ~early
    if not bool(late.any()):
        return "first" if bool(early.any()) else "untouched"
    if not bool(early.any()):
        return "last"
    if not bool(only_early.any()):
        return "whole"
    rows = len(early)
    if rows < length and int((early & late).sum()) < 2:
        return "apart"  # one row may stand for tokens of both parts
    places = torch.arange(rows)
    # Each row that only the first tokens reach stands before all that the last ones reach.
    before = not ordered or int(places[only_early].max()) < int(places[late].min())
    if not bool(only_late.any()) and before:
        # Narrow convolutions with a stride lean to one side, by as much as one of few rows.
        clear = min(int(late.sum()), int(only_early.sum())) >= max(8, rows // 4)
        return "causal" if clear or not is_picture else "near"
    aligned = ordered and (rows % length == 0 or length % rows == 0)
    if aligned and bool(late[: (length - last) * rows // length].any()):
        return "mutual"
    if not bool((early & late).any()):
        return "apart"
    if is_picture:
        return "near"
    if aligned:
        slack = 1 if rows < length else 0  # a row that stands for several tokens meets both parts
        head = -(-first * rows // length) + slack
        return "causal" if bool(early[head:].any()) else "apart"
    return "causal" if int(only_early.sum()) > int(only_late.sum()) + 1 else "near"
