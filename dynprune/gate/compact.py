r"""Compact execution: the rows and columns of the kept neurons alone are multiplied.

Every function here is of weights, selections and an input; none knows a layer or a gate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dynprune.gate.binding import Bound, all_positions
from dynprune.gate.topr import kept_values

__all__ = ["Kept", "gathered_product", "kept_channels", "multiply", "narrowed", "widened"]


@dataclass(frozen=True)
class Kept:
    """The channels of one axis that are computed, for each instance its own.

    Attributes:
        index: (B, P) positions, ascending.
        value: (B, P) factors, or None where they are all 1.
        mean: (B, P) values that replace the channels where they are skipped, or None.
    """

    index: Tensor
    value: Tensor | None
    mean: Tensor | None


def kept_channels(bounds: Sequence[Bound], size: int, dtype: torch.dtype) -> Kept:
    """Return what these gates keep of an axis of ``size`` channels; channels of no gate stay."""
    if len(bounds) == 1 and bounds[0].index is None:
        bound, selection = bounds[0], bounds[0].selection
        value = selection.value if bound.carries_value else None
        mean = None if selection.mean is None else kept_values(selection.mean, selection.index)
        return Kept(selection.index, value, mean)
    batch, device = bounds[0].selection.batch, bounds[0].selection.index.device
    keep = torch.ones(batch, size, dtype=torch.bool, device=device)
    value = torch.ones(batch, size, dtype=dtype, device=device)
    mean = torch.zeros(batch, size, dtype=dtype, device=device)
    kept = size
    for bound in bounds:
        selection = bound.selection
        index = all_positions(bound.index, size, device)
        keep[:, index.flatten()] = False
        rows = index[selection.index]  # (B, K, m)
        keep.scatter_(1, rows.flatten(1), True)
        kept -= index.numel() - index.shape[1] * rows.shape[1]
        if selection.value is not None and bound.carries_value:
            carrying = rows[..., -1:] if bound.last_carries else rows
            factor = selection.value.repeat_interleave(carrying.shape[-1], 1)
            value = value.scatter(1, carrying.flatten(1), factor)
        if selection.mean is not None:
            means = selection.mean[selection.index].repeat_interleave(index.shape[1], 1)
            mean = mean.scatter(1, rows.flatten(1), means)
    positions = keep.to(torch.uint8).topk(kept, dim=1).indices.sort(dim=1).values
    return Kept(positions, value.gather(1, positions), mean.gather(1, positions))


def narrowed(tokens: Tensor, bounds: Sequence[Bound], kept: Kept, size: int) -> Tensor:
    """Return the kept columns (B, T, P) of an input that may still be full width."""
    if all(bound.selection.execution == "compact" for bound in bounds):
        return tokens
    place, _ = _places(bounds, kept.index, size, tokens.dtype)
    return tokens.gather(2, place[:, None].expand(-1, tokens.shape[1], -1))


def _places(
    bounds: Sequence[Bound], kept: Tensor, size: int, dtype: torch.dtype
) -> tuple[Tensor, int]:
    """Return where kept positions lie on an axis that its compact bindings alone have narrowed."""
    compact = [bound for bound in bounds if bound.selection.execution == "compact"]
    if not compact:
        return kept, size
    there = kept_channels(compact, size, dtype).index
    return torch.searchsorted(there.contiguous(), kept.contiguous()), there.shape[1]


def widened(tokens: Tensor, kept: Kept, size: int) -> Tensor:
    r"""Return :math:`M \circ (Y - \mu)` at full width, (B, T, size), from the kept columns."""
    if kept.mean is not None:
        tokens = tokens - kept.mean[:, None]
    if kept.value is not None:
        tokens = tokens * kept.value[:, None]
    full = tokens.new_zeros(*tokens.shape[:-1], size)
    return full.scatter(2, kept.index[:, None].expand(-1, tokens.shape[1], -1), tokens)


def gathered_product(
    tokens: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    *,
    rows: Kept | None,
    columns: Kept | None,
) -> Tensor:
    r"""Multiply by the kept rows and columns of a weight.

    .. math:: y = v_{rows} \circ (W_{rows, columns} (v_{columns} \circ (x - \mu_{columns})) + b)

    Args:
        tokens: input, of the kept columns alone where there are any.
        matrix: weight W.
        bias: b, with W mu in it where columns have means.
        rows: what is kept of the outputs; all where None.
        columns: what is kept of the inputs; all where None.

    Shape:
        - tokens: (B, T, in_features) or (B, T, kept columns)
        - matrix: (out_features, in_features)
        - bias: (out_features,)
        - Output: (B, T, out_features) or (B, T, kept rows)
    """
    weight, offset = _gather_weights(
        matrix,
        bias,
        None if rows is None else rows.index,
        None if columns is None else columns.index,
    )
    outs, ins = (2, 1) if rows is None else (1, 2)  # axes of the gathered weights
    if columns is not None:
        mean, value = columns.mean, columns.value
        if value is not None:
            count = tokens.shape[1]
            if isinstance(count, int) and count < weight.shape[outs]:  # the cheaper factor
                tokens = tokens * value[:, None]
                mean = None if mean is None else mean * value
            else:
                weight = weight * value.unsqueeze(outs)
        if mean is not None:
            skip = (mean[:, None] @ weight.transpose(ins, 1)).squeeze(1)  # (B, out)
            offset = -skip if offset is None else offset - skip
    if rows is not None and rows.value is not None:
        weight = weight * rows.value.unsqueeze(ins)
        offset = None if offset is None else offset * rows.value
    return multiply(tokens, weight, offset, transposed=rows is not None)


def scattered(
    y: Tensor, bounds: Sequence[Bound], rows: Kept, size: int, dtype: torch.dtype
) -> Tensor:
    """Lay kept outputs out where following code expects them; zeros stand at skipped ones."""
    if all(bound.selection.execution != "scatter" for bound in bounds):
        return y
    place, width = _places(bounds, rows.index, size, dtype)
    full = y.new_zeros(*y.shape[:-1], width)
    return full.scatter(2, place[:, None].expand(-1, y.shape[1], -1), y)


def _gather_weights(
    matrix: Tensor, bias: Tensor | None, rows: Tensor | None, columns: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the weights of the kept rows and columns, and the bias (B, out).

    They lie as they were gathered, so that nothing is transposed: (B, out, in) where rows were
    chosen, (B, in, out) where columns alone were.
    """
    if rows is None:
        assert columns is not None
        batch, kept = columns.shape
        weight = matrix.t().index_select(0, columns.flatten()).view(batch, kept, matrix.shape[0])
        return weight, None if bias is None else bias.expand(batch, -1)
    batch, kept = rows.shape
    weight = matrix.index_select(0, rows.flatten()).view(batch, kept, matrix.shape[1])
    if columns is not None:
        weight = weight.gather(2, columns[:, None].expand(-1, kept, -1))
    return weight, None if bias is None else kept_values(bias, rows)


def multiply(tokens: Tensor, weight: Tensor, offset: Tensor | None, *, transposed: bool) -> Tensor:
    """Return tokens (B, T, I) @ weight (B, I, O) + offset (B, O) for each instance.

    The weight is (B, O, I) where ``transposed``.
    """
    if tokens.shape[0] == 1:  # one plain product: engines add its bias on the way
        matrix, flat = weight.squeeze(0), None if offset is None else offset.squeeze(0)
        matrix = matrix if transposed else matrix.t()
        return F.linear(tokens.squeeze(0), matrix, flat).unsqueeze(0)
    weight = weight.transpose(1, 2) if transposed else weight
    if offset is None:
        return torch.bmm(tokens, weight)
    return torch.baddbmm(offset[:, None], tokens, weight)
