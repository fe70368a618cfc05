"""Training batches of pictures that no label map goes with: random crops, brought to one size.

A sample depends on (seed, step, position) alone, as in `dynprune.data.sampling`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dynprune.data.augment import distort
from dynprune.data.folders import FolderData
from dynprune.data.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from dynprune.data.sampling import mix, sample_index, shared_positions

__all__ = ["FolderBatches", "RandomCrop"]

_TRIES = 10
_SHAPES = (3 / 4, 4 / 3)  # least and greatest width over height of a crop


@dataclass(frozen=True)
class RandomCrop:
    """Cuts a random part out of a picture and brings it to one size; a pure function of a seed.

    The part has a share of the picture's area that is drawn evenly, and a shape that is drawn
    evenly on a logarithmic scale; where none fits, it is the largest one in the middle.

    Attributes:
        size: height and width of the result, in pixels.
        area: bounds of the part's share of the area.
        flip: probability of a horizontal flip.
        photometric: change brightness, contrast, saturation and hue at random.

    Source: Szegedy et al., Going deeper with convolutions, arXiv 1409.4842, section 6.
    """

    size: Sequence[int]
    area: Sequence[float] = (0.35, 1.0)
    flip: float = 0.5
    photometric: bool = True

    def __call__(self, image: Tensor, *, seed: int) -> Tensor:
        """Cut a part out of a picture.

        Shape:
            uint8 ``(3, H, W)`` in, float32 ``(3, h, w)``, 0 to 255, out.
        """
        random = torch.Generator().manual_seed(seed)
        top, left, high, wide = _part(image.shape[1:], self.size, self.area, random)
        part = image[None, :, top : top + high, left : left + wide].float()
        size = tuple(self.size)
        picture = F.interpolate(part, size, mode="bilinear", align_corners=False, antialias=True)[0]
        if _draw(random) < self.flip:
            picture = picture.flip(-1)
        return distort(picture, random) if self.photometric else picture


class FolderBatches:
    """The batches of all steps; each process can make its own share alone.

    Args:
        data: pictures, with a class each or without.
        batch_size: samples of a step, over all processes.
        seed: of the order and of every augmentation.
        crop: how parts of pictures are drawn.
        mean: of the model's input, see :func:`~dynprune.data.normalise`.
        std: likewise.

    Shape:
        float32 ``(B, 3, h, w)`` and int64 ``(B,)``, or None where there are no classes.
    """

    def __init__(
        self,
        data: FolderData,
        batch_size: int,
        seed: int,
        crop: RandomCrop,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.data, self.batch_size, self.seed, self.crop = data, batch_size, seed, crop
        self.mean, self.std = mean, std

    def __call__(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return the whole batch of a step."""
        return self.share(step, 0, 1)

    def share(self, step: int, rank: int, processes: int) -> tuple[Tensor, Tensor | None]:
        """Return a process's part of that batch: every ``processes``-th sample.

        Raises:
            UsageError: if the processes cannot share the batch evenly.
            InputError: if a picture cannot be read.
        """
        pictures: list[Tensor] = []
        labels: list[int] = []
        for position in shared_positions(self.batch_size, rank, processes):
            count = step * self.batch_size + position
            index = sample_index(len(self.data), count, self.seed)
            picture = self.data.picture(index)
            pictures.append(self.crop(picture, seed=mix(self.seed, "augment", count)))
            labels += self.data.labels[index : index + 1]
        images = normalise(torch.stack(pictures), self.mean, self.std)
        return images, torch.tensor(labels) if labels else None


def _part(
    shape: Sequence[int], size: Sequence[int], area: Sequence[float], random: torch.Generator
) -> tuple[int, int, int, int]:
    """Draw the first row, the first column, the height and the width of a part."""
    height, width = shape
    proportion = size[1] / size[0]
    for _ in range(_TRIES):
        pixels = height * width * _between(area, random)
        slope = proportion * math.exp(_between([math.log(s) for s in _SHAPES], random))
        wide, high = round(math.sqrt(pixels * slope)), round(math.sqrt(pixels / slope))
        if 0 < wide <= width and 0 < high <= height:
            top = int(_draw(random) * (height - high + 1))
            left = int(_draw(random) * (width - wide + 1))
            return top, left, high, wide
    wide = min(width, max(1, round(height * proportion)))
    high = min(height, max(1, round(width / proportion)))
    return (height - high) // 2, (width - wide) // 2, high, wide


def _draw(random: torch.Generator) -> float:
    return float(torch.rand((), generator=random, dtype=torch.float64))


def _between(bounds: Sequence[float], random: torch.Generator) -> float:
    low, high = bounds
    return low + (high - low) * _draw(random)
