"""Turn uint8 pictures into what models were trained on: zero mean and unit spread a channel."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "normalise"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of the red, green and blue of ImageNet, for pixels from 0 to 1."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the same."""


def normalise(
    images: Tensor,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    r"""Scale pixels to 0..1, then standardise: :math:`(x / 255 - \mu) / \sigma`.

    Args:
        images: pixels from 0 to 255, uint8 or floating point.
        mean: of every channel, for pixels from 0 to 1.
        std: standard deviation of every channel, likewise.

    Shape:
        ``(..., 3, H, W)`` in, the same in float32 out.
    """
    shift = torch.tensor(mean, device=images.device)[:, None, None] * 255
    scale = torch.tensor(std, device=images.device)[:, None, None] * 255
    return (images.float() - shift) / scale
