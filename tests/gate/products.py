"""Gated products written out with explicit masks, for the tests of compact and masked execution."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dynprune.gate.binding import Bound
from dynprune.gate.selection import GateOutput, Selection, select

F64 = torch.float64


@dataclass(frozen=True)
class Axis:
    """One axis of a weight and the gates on it.

    Attributes:
        bounds: how the functions under test know them.
        keep: (B, size) ones at channels that are computed.
        factor: (B, size) what they carry.
        mean: (size,) what replaces the others.
        kept: channels that every instance keeps.
    """

    bounds: list[Bound]
    keep: Tensor
    factor: Tensor
    mean: Tensor
    kept: int


#: form -> (neurons, positions) of each gate on an axis of 12 channels; None for the whole axis.
FORMS = {
    "whole": [(12, None)],
    "table": [(6, [[11, 4], [2, 0], [5, 9], [1, 3], [6, 7], [8, 10]])],
    "part": [(4, [[10], [3], [7], [0]])],
    "two": [(4, [[10], [3], [7], [0]]), (3, [[1, 2], [4, 11], [5, 6]])],
}
SIZE = 12


def axis(form, batch, execution, *, values=True, means=True, carries=True, last=False, seed=0):
    """Make an axis of 12 channels with random choices for every instance."""
    random = torch.Generator().manual_seed(seed)
    keep = torch.ones(batch, SIZE, dtype=F64)
    factor = torch.ones(batch, SIZE, dtype=F64)
    mean = torch.zeros(SIZE, dtype=F64)
    bounds = []
    size = SIZE
    for neurons, positions in FORMS[form]:
        scores = torch.randn(batch, neurons, generator=random, dtype=F64)
        value = torch.rand(batch, neurons, generator=random, dtype=F64) + 0.5
        mu = torch.randn(neurons, generator=random, dtype=F64) if means else None
        out = GateOutput(scores, value if values else None)
        selection: Selection = select(out, neurons // 2, 1, mean=mu, execution=execution)
        index = None if positions is None else torch.tensor(positions)
        bounds.append(Bound(selection, index, carries, last))
        places = [[j] for j in range(neurons)] if positions is None else positions
        size -= (neurons - neurons // 2) * len(places[0])
        for row in range(batch):
            kept = set(selection.index[row].tolist())
            for neuron, channels in enumerate(places):
                for channel in channels:
                    keep[row, channel] = float(neuron in kept)
                    carrying = carries and values and (not last or channel == channels[-1])
                    factor[row, channel] = value[row, neuron] if carrying else 1.0
        if mu is not None:
            for neuron, channels in enumerate(places):
                for channel in channels:
                    mean[channel] = mu[neuron]
    return Axis(bounds, keep, factor, mean, size)


def nothing(batch):
    """Make an axis without gates."""
    return Axis(
        [],
        torch.ones(batch, SIZE, dtype=F64),
        torch.ones(batch, SIZE, dtype=F64),
        torch.zeros(SIZE, dtype=F64),
        SIZE,
    )


def dense(x, weight, bias, rows, columns):
    """Return (B, T, out): every product written out, skipped channels at zero.

    Args:
        x: (B, T, in) at full width.
        weight: (out, in).
        bias: (out,), with the means' constant in it.
        rows: of the outputs.
        columns: of the inputs.
    """
    hidden = torch.einsum("bti,bi,bi->bti", x - columns.mean, columns.keep, columns.factor)
    y = torch.einsum("bti,oi->bto", hidden, weight) + bias
    return torch.einsum("bto,bo,bo->bto", y, rows.keep, rows.factor)


def taken(x, made):
    """Return the kept channels (B, T, K) of (B, T, size)."""
    rows = [row[:, keep.bool()] for row, keep in zip(x, made.keep, strict=True)]
    return torch.stack(rows) if rows else x[..., : made.kept]
