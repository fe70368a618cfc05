"""Augment one picture with its label map as SegFormer is trained: a pure function of its seed.

Random resize, random crop, horizontal flip and photometric distortion: the pipeline of
MMSegmentation with which SegFormer was trained (Xie et al., 2021, section 4.1). Geometry treats
both alike (bilinear for the picture, nearest for the label); what a crop cannot fill is void.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dynprune.data.normalise import IMAGENET_MEAN
from dynprune.data.values import VOID

__all__ = ["augment", "distort", "resized_crop"]

_BRIGHTNESS = 32 / 255  # largest change, of pixels from 0 to 1
_FACTOR = (0.5, 1.5)  # of contrast and of saturation
_HUE = torch.pi / 10  # largest turn of the colour wheel, in radians
_CROP_TRIES = 10
_FILL = [255 * value for value in IMAGENET_MEAN]
_LARGEST_SHARE = 0.75  # of a crop's labelled pixels that one class may take


def augment(
    image: Tensor,
    label: Tensor,
    *,
    seed: int,
    crop: Sequence[int],
    scale: Sequence[float] = (0.5, 2.0),
    flip: float = 0.5,
    photometric: bool = True,
    fill: Sequence[float] = _FILL,
) -> tuple[Tensor, Tensor]:
    """Augment one sample; the same seed gives the same result, and no other state is read.

    Args:
        image: picture.
        label: its label map, void 255.
        seed: decides every random choice.
        crop: height and width of the result, in pixels.
        scale: smallest and largest factor of the random resize.
        flip: probability of a horizontal flip.
        photometric: change brightness, contrast, saturation and hue at random.
        fill: colour of the padding below and to the right of a sample that is smaller than the
            crop, 0 to 255; its label is void.

    Shape:
        uint8 ``(3, H, W)`` and ``(H, W)`` in; float32 ``(3, h, w)``, 0 to 255, and int64
        ``(h, w)`` out.
    """
    random = torch.Generator().manual_seed(seed)
    factor = _between(scale, random)
    size = [max(1, round(side * factor)) for side in label.shape]
    corner = _choose_crop(label, size, crop, random)
    picture, target = resized_crop(image, label, size, corner, crop)
    if _draw(random) < flip:
        picture, target = picture.flip(-1), target.flip(-1)
    if photometric:
        picture = distort(picture, random)
    return _pad(picture, target, crop, fill)


def resized_crop(
    image: Tensor,
    label: Tensor,
    size: Sequence[int],
    corner: Sequence[int],
    crop: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Resize a sample to ``size``, then cut ``crop`` out at ``corner``, without the whole resize.

    Only the pixels of the crop are computed. The picture is interpolated bilinearly with
    half-pixel centres (no antialiasing), the label takes the nearest pixel. Where the crop
    reaches past the resized sample, the result is smaller.

    Shape:
        ``(3, H, W)`` and ``(H, W)`` in; float32 ``(3, h, w)`` and ``(h, w)`` out.
    """
    axes = zip(label.shape, size, corner, crop, strict=True)
    rows, columns = (_positions(*axis) for axis in axes)
    low, high, share = rows
    picture = image[:, low].float().lerp_(image[:, high].float(), share[:, None])
    low, high, share = columns
    picture = picture[:, :, low].lerp_(picture[:, :, high], share)
    return picture, label[_nearest(rows)][:, _nearest(columns)]


def distort(picture: Tensor, random: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue, each with probability one half.

    Contrast comes before or after the colours, at random, as in SSD's training.

    Shape:
        float32 ``(3, h, w)``, 0 to 255, in and out.
    """
    from kornia.enhance import adjust_brightness, adjust_contrast

    def contrast(pixels: Tensor) -> Tensor:
        if _draw(random) < 0.5:
            return adjust_contrast(pixels, _between(_FACTOR, random))
        return pixels

    pixels = picture / 255
    if _draw(random) < 0.5:
        pixels = adjust_brightness(pixels, _between((-_BRIGHTNESS, _BRIGHTNESS), random))
    first = _draw(random) < 0.5
    if first:
        pixels = contrast(pixels)
    pixels = _recolour(pixels, random)
    if not first:
        pixels = contrast(pixels)
    return pixels * 255


def _recolour(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Scale the saturation and turn the hue, in one trip through HSV."""
    from kornia.color import hsv_to_rgb, rgb_to_hsv

    saturation = _between(_FACTOR, random) if _draw(random) < 0.5 else 1.0
    turn = _between((-_HUE, _HUE), random) if _draw(random) < 0.5 else 0.0
    if saturation == 1.0 and turn == 0.0:
        return pixels
    hue, colour, value = rgb_to_hsv(pixels).unbind(0)
    hue = (hue + turn).remainder(2 * torch.pi)
    colour = (colour * saturation).clamp(0, 1)
    return hsv_to_rgb(torch.stack([hue, colour, value]))


def _choose_crop(
    label: Tensor, size: Sequence[int], crop: Sequence[int], random: torch.Generator
) -> tuple[int, int]:
    """Draw the crop's corner; draw again, up to ten times, while one class fills the crop."""
    for _ in range(_CROP_TRIES):
        top, left = (
            int(_draw(random) * (max(whole - part, 0) + 1))
            for whole, part in zip(size, crop, strict=True)
        )
        axes = zip(label.shape, size, (top, left), crop, strict=True)
        rows, columns = (_nearest(_positions(*axis)) for axis in axes)
        # Every second pixel tells as much about shares, in a quarter of the time.
        counts = label[rows[::2]][:, columns[::2]].flatten().bincount(minlength=VOID + 1)[:VOID]
        if (counts > 0).sum() > 1 and counts.max() < _LARGEST_SHARE * counts.sum():
            break
    return top, left


def _positions(side: int, size: int, start: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the two source pixels of every output pixel along one axis, and the second's share."""
    wanted = torch.arange(start, min(start + length, size), dtype=torch.float64)
    source = ((wanted + 0.5) * (side / size) - 0.5).clamp(0, side - 1)
    low = source.floor().long()
    return low, (low + 1).clamp_max(side - 1), (source - low).float()


def _nearest(positions: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    low, high, share = positions
    return torch.where(share < 0.5, low, high)


def _pad(
    picture: Tensor, target: Tensor, crop: Sequence[int], fill: Sequence[float]
) -> tuple[Tensor, Tensor]:
    height, width = target.shape
    if (height, width) == tuple(crop):
        return picture.contiguous(), target.long()
    wide = torch.tensor(fill)[:, None, None].repeat(1, *crop)
    wide[:, :height, :width] = picture
    labels = torch.full(tuple(crop), VOID)
    labels[:height, :width] = target
    return wide, labels


def _draw(random: torch.Generator) -> float:
    return float(torch.rand((), generator=random, dtype=torch.float64))


def _between(bounds: Sequence[float], random: torch.Generator) -> float:
    low, high = bounds
    return low + (high - low) * _draw(random)
