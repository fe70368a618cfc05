"""Add maps of several resolutions band by band of rows, so that no whole map leaves the cache.

Resizing is separable and linear: along the width first, where the maps are still low, then along
the height, where each band of the sum takes a few rows of each map by one small product.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import Library

__all__ = ["Resize", "Stage", "resize_matrix", "row_tiles_of_sum"]

BAND = 1 << 19
"""Elements of a band: 2 MB of float32, measured best on CPUs (docs/notes/performance.md)."""

ROWS = 8
"""Rows of a band are a multiple of this: what the maps of a hierarchy usually differ by."""

AHEAD = 2
"""Bands for which maps are resized along their width at once. All of a map at once is larger than
what allocators keep: fresh pages at every call."""

# An operator of its own, since resizing, however it is computed, is no multiply-add of the model:
# counters of products look into no operator that they do not know.
_LIBRARY = Library("dynprune", "FRAGMENT")
_LIBRARY.define("add_resized_(Tensor(a!) total, Tensor matrix, Tensor rows) -> ()")


def _add_resized(total: Tensor, matrix: Tensor, rows: Tensor) -> None:
    total.addmm_(matrix, rows)


_LIBRARY.impl("add_resized_", _add_resized, "CPU")


@dataclass(frozen=True)
class Resize:
    """How `torch.nn.functional.interpolate` resizes a map.

    Attributes:
        mode: of the interpolation.
        align_corners: None where the mode has no such setting.
        antialias: as there.
    """

    mode: str
    align_corners: bool | None = None
    antialias: bool = False

    def __call__(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Resize (B, C, H, W) to (B, C, *size)."""
        return F.interpolate(
            x,
            size=tuple(size),
            mode=self.mode,
            align_corners=self.align_corners,
            antialias=self.antialias,
        )


@dataclass(frozen=True)
class Stage:
    """One map of the sum, and the linear that brings it to the width of the sum.

    Attributes:
        tokens: (H_i, W_i, C_i), contiguous.
        weight: (D, C_i).
        resize: to the size of the sum, None where the map has it already.
    """

    tokens: Tensor
    weight: Tensor
    resize: Resize | None


def row_tiles_of_sum(
    stages: Sequence[Stage], bias: Tensor | None, height: int, width: int
) -> Iterator[tuple[int, Tensor]]:
    r"""Yield :math:`\sum_i \mathrm{up}_i(W_i x_i) + b` from top to bottom.

    Args:
        stages: the maps of one instance.
        bias: (D,) or None.
        height: of the sum.
        width: of the sum.

    Yields:
        The first row of a band, and the band, (rows, width, D); it may be overwritten.
    """
    channels = len(stages[0].weight)
    whole = [stage for stage in stages if stage.resize is None]
    small = [_Small(stage, height, width) for stage in stages if stage.resize is not None]
    rows = max(1, BAND // (width * channels) // ROWS) * ROWS
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        if top % (rows * AHEAD) == 0:
            wide = [stage.widened(top, min(height, top + rows * AHEAD)) for stage in small]
        band = _projected(whole, bias, slice(top, bottom))
        if band is None:
            band = stages[0].weight.new_zeros((bottom - top) * width, channels)
            band = band if bias is None else band.add_(bias)
        flat = band.view(bottom - top, width * channels)
        for stage, (start, lines) in zip(small, wide, strict=True):
            read = stage.read(top, bottom)
            rows_read = lines[read.start - start : read.stop - start]
            torch.ops.dynprune.add_resized_(flat, stage.matrix[top:bottom, read], rows_read)
        yield top, band.view(bottom - top, width, channels)


def _projected(whole: Sequence[Stage], bias: Tensor | None, rows: slice) -> Tensor | None:
    """Return the rows' sum of the maps that have its size, (rows * width, D)."""
    total: Tensor | None = None
    for stage in whole:
        x = stage.tokens[rows].flatten(0, 1)
        if total is None:
            total = F.linear(x, stage.weight, bias)
        else:
            total.addmm_(x, stage.weight.t())
    return total


class _Small:
    """A map that is resized: along its width some bands ahead, along its height for each band.

    Args:
        stage: the map.
        height: of the sum.
        width: of the sum.
    """

    def __init__(self, stage: Stage, height: int, width: int) -> None:
        assert stage.resize is not None
        self.map = F.linear(stage.tokens, stage.weight)  # (H_i, W_i, D)
        self.resize, self.width = stage.resize, width
        self.matrix, self.first, self.last = resize_matrix(
            stage.resize, len(stage.tokens), height, self.map.dtype
        )

    def read(self, top: int, bottom: int) -> slice:
        """Say which rows of the map these rows of the sum take."""
        return slice(min(self.first[top:bottom]), max(self.last[top:bottom]))

    def widened(self, top: int, bottom: int) -> tuple[int, Tensor]:
        """Resize those rows along their width; give the first's place, and (rows, width * D)."""
        read = self.read(top, bottom)
        x = self.map[read][None].permute(0, 3, 1, 2)  # (1, D, rows, W_i)
        lines = self.resize(x, (x.shape[2], self.width))
        return read.start, lines.permute(0, 2, 3, 1).reshape(x.shape[2], -1)


@lru_cache(maxsize=64)
def resize_matrix(
    resize: Callable[[Tensor, Sequence[int]], Tensor], size: int, wanted: int, dtype: torch.dtype
) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
    """Write a resize along one axis as a product.

    Args:
        resize: as `Resize`.
        size: of the axis.
        wanted: size after the resize.
        dtype: of the matrix.

    Returns:
        The matrix (wanted, size), and for each of its rows the first column that is not zero and
        one past the last.
    """
    with torch.inference_mode(False), torch.no_grad():
        identity = torch.eye(size, dtype=dtype).view(1, size, size, 1)
        matrix = resize(identity, (wanted, 1))[0, :, :, 0].t().contiguous()
        used = matrix.ne(0)
        first = used.to(torch.uint8).argmax(1)
        last = size - used.flip(1).to(torch.uint8).argmax(1)
    return matrix, tuple(first.tolist()), tuple(last.tolist())
