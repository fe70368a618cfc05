"""Pictures for a page: made small, coloured, and written as data URLs."""

import base64
import io

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

__all__ = ["WIDTH", "colour_axes", "coloured_features", "data_url", "picture_view", "shrink"]

WIDTH = 320  # pixels
QUALITY = 80


def shrink(view: Tensor) -> Tensor:
    """Make a view at most `WIDTH` pixels wide: uint8 ``(3, H, W)`` in and out."""
    height, width = view.shape[1:]
    if width <= WIDTH:
        return view
    size = (max(1, round(height * WIDTH / width)), WIDTH)
    small = F.interpolate(view[None].float(), size, mode="area")[0]
    return small.round().to(torch.uint8)


def data_url(view: Tensor) -> str:
    """Write a uint8 ``(3, H, W)`` picture as JPEG in a data URL."""
    buffer = io.BytesIO()
    picture = Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())
    picture.save(buffer, format="JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def picture_view(picture: Tensor) -> tuple[str, tuple[int, int]]:
    """Return a small picture as a data URL, with its width and height in pixels."""
    small = shrink(picture)
    return data_url(small), (small.shape[2], small.shape[1])


def colour_axes(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the directions in which vectors differ most, for three colours.

    Args:
        vectors: one a position.

    Shape:
        ``(N, C)`` in; the mean ``(C,)``, directions ``(C, 3)`` and the spread ``(3,)`` out.
    """
    flat = vectors.float()
    mean = flat.mean(0)
    centred = flat - mean
    _, _, across = torch.linalg.svd(centred, full_matrices=False)
    axes = across[:3].T
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    axes = F.pad(axes * signs, (0, 3 - axes.shape[1]))
    return mean, axes, (centred @ axes).std(0, correction=0).clamp_min(1e-12)


def coloured_features(
    vectors: Tensor, grid: tuple[int, int], axes: tuple[Tensor, Tensor, Tensor], size: int = 224
) -> Tensor:
    """Paint the vectors of a grid of positions by their place along three directions.

    Args:
        vectors: one a position, row by row.
        grid: rows and columns.
        axes: of `colour_axes`; the same for two models makes their colours comparable.
        size: height of the result, in pixels.

    Shape:
        ``(N, C)`` in, uint8 ``(3, h, w)`` out.
    """
    mean, directions, spread = axes
    place = (vectors.float() - mean) @ directions / spread  # (N, 3)
    colours = (place / 4 + 0.5).clamp(0, 1).T.reshape(1, 3, *grid)
    width = max(1, round(size * grid[1] / grid[0]))
    painted = F.interpolate(colours, (size, width), mode="nearest")[0]
    return (painted * 255).round().to(torch.uint8)
