"""From a picture of any size to what a model takes: resized as its processor says, standardised."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dynprune.data.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from dynprune.data.pictures import MAX_PIXELS
from dynprune.errors import InputError

__all__ = ["Preprocessing", "Resize"]


@dataclass(frozen=True)
class Resize:
    """A size that pictures are brought to, whatever their own.

    Attributes:
        height: in pixels; with ``width`` for a fixed size, which does not keep the proportions.
        width: in pixels.
        shortest_edge: length of the shorter side in pixels, keeping the proportions.
        longest_edge: the most that the longer side may have then, in pixels; alone, its length.
        resample: Pillow's number of the filter; 2 is bilinear.
    """

    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None
    resample: int = 2

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that a picture of this height and width gets, in pixels."""
        if self.height is not None and self.width is not None:
            return self.height, self.width
        short, long = sorted((height, width))
        if self.shortest_edge is None:
            assert self.longest_edge is not None
            new_short, new_long = int(self.longest_edge * short / long), self.longest_edge
        else:
            new_short, new_long = self.shortest_edge, int(self.shortest_edge * long / short)
            if self.longest_edge is not None and new_long > self.longest_edge:
                new_short = int(self.longest_edge * new_short / new_long)
                new_long = self.longest_edge
        new_short = max(1, new_short)
        return (new_short, new_long) if height <= width else (new_long, new_short)

    def __call__(self, image: Tensor) -> Tensor:
        """Resize a picture.

        Shape:
            uint8 ``(3, H, W)`` in, uint8 ``(3, h, w)`` out.

        Raises:
            InputError: if the result would be larger than any picture that is read.
        """
        height, width = self.size_of(*image.shape[1:])
        if height * width > MAX_PIXELS:
            raise InputError(
                f"resizing a picture of {image.shape[2]}x{image.shape[1]} would give "
                f"{width}x{height}, more than {MAX_PIXELS} pixels"
            )
        if (height, width) == tuple(image.shape[1:]):
            return image
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
        resized = picture.resize((width, height), Image.Resampling(self.resample))
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous().to(image.device)

    def describe(self) -> str:
        """Say the size in a few words."""
        if self.height is not None:
            size = f"{self.height}x{self.width} (height x width)"
        elif self.shortest_edge is not None:
            limit = "" if self.longest_edge is None else f", at most {self.longest_edge}"
            size = f"a shorter side of {self.shortest_edge}{limit}"
        else:
            size = f"a longer side of {self.longest_edge}"
        return f"resized to {size}, {Image.Resampling(self.resample).name.lower()}"

    def to_json(self) -> dict[str, Any]:
        """Return the size as plain values."""
        sides = ("height", "width", "shortest_edge", "longest_edge")
        known = {side: getattr(self, side) for side in sides if getattr(self, side) is not None}
        return {**known, "resample": Image.Resampling(self.resample).name.lower()}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture goes into a model.

    Attributes:
        mean: of every channel, for pixels from 0 to 1; see :func:`~dynprune.data.normalise`.
        std: standard deviation of every channel, likewise.
        resize: size that pictures are brought to; ``None`` takes them at full size.
        window: height and width of sliding windows, in pixels; ``None`` takes the whole picture.
        stride: rows and columns between windows; two thirds of the window by default.
        crop: height and width of the centre that is cut out of the resized picture, in pixels;
            ``None`` takes all of it, as wherever every pixel has a label.

    Example:
        >>> Preprocessing()(torch.zeros(3, 4, 6, dtype=torch.uint8)).shape
        torch.Size([1, 3, 4, 6])
    """

    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    resize: Resize | None = None
    window: Sequence[int] | None = None
    stride: Sequence[int] | None = None
    crop: Sequence[int] | None = None

    def __call__(self, image: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Make a model's input of one picture.

        Shape:
            uint8 ``(3, H, W)`` in, float32 ``(1, 3, h, w)`` on ``device`` out.
        """
        sized = image if self.resize is None else self.resize(image)
        if self.crop is not None:
            sized = _centre(sized, self.crop)
        return normalise(sized[None].to(device), self.mean, self.std)

    def describe(self) -> str:
        """Say in a few words what is done."""
        if self.is_plain:
            colours = "pixels from 0 to 1"
        else:
            colours = f"mean {_listed(self.mean)}, std {_listed(self.std)}"
        size = "at full size" if self.resize is None else self.resize.describe()
        window = "" if self.window is None else f", windows of {self.window[0]}x{self.window[1]}"
        crop = "" if self.crop is None else f", the middle {self.crop[0]}x{self.crop[1]} of it"
        return f"{colours}, {size}{crop}{window}"

    @property
    def is_plain(self) -> bool:
        """Whether pixels are scaled to 0..1 and not standardised."""
        return all(m == 0 for m in self.mean) and all(s == 1 for s in self.std)

    def to_json(self) -> dict[str, Any]:
        """Return what is done as plain values."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": None if self.resize is None else self.resize.to_json(),
            "window": None if self.window is None else list(self.window),
            **({} if self.crop is None else {"crop": list(self.crop)}),
        }

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of every input in pixels, where pictures of all sizes get the same."""
        if self.crop is not None:
            return self.crop[0], self.crop[1]
        if self.resize is None or self.resize.height is None or self.resize.width is None:
            return None
        return self.resize.height, self.resize.width


def _centre(image: Tensor, size: Sequence[int]) -> Tensor:
    """Cut the middle out of a picture; where it is smaller, the rest is black."""
    height, width = image.shape[1:]
    high, wide = max(0, size[0] - height), max(0, size[1] - width)
    if high or wide:
        edges = (wide // 2, wide - wide // 2, high // 2, high - high // 2)
        image = torch.nn.functional.pad(image, edges)
    top, left = (image.shape[1] - size[0]) // 2, (image.shape[2] - size[1]) // 2
    return image[:, top : top + size[0], left : left + size[1]]


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
