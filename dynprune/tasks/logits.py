"""Per-pixel logits of any segmentation model: found in its output, made for a picture of any size.

What a model returns differs (a tensor, a tuple, a dict, a dataclass), and so does the resolution.
Here logits become a label map at the picture's own size, at once or window by window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynprune.errors import UsageError

__all__ = ["label_map", "logits_of", "window_logits"]

_KEYS = ("logits", "out", "pred", "prediction", "output")
_CHUNK_ELEMENTS = 1 << 26


def logits_of(output: Any) -> Tensor:
    """Find the logits in what a model returned.

    A tensor is taken as it is; of a mapping or dataclass the entry ``logits`` (or ``out``, as in
    torchvision's models), else the first tensor; of a tuple or list the first tensor.

    Raises:
        UsageError: if there is no tensor in it.
    """
    if isinstance(output, Tensor):
        return output
    if is_dataclass(output) and not isinstance(output, (type, Mapping)):
        output = {field.name: getattr(output, field.name) for field in fields(output)}
    if isinstance(output, Mapping):
        for key in _KEYS:
            if isinstance(output.get(key), Tensor):
                return output[key]
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        for item in output:
            if isinstance(item, Tensor):
                return item
    raise UsageError(
        f"no logits in the model's output of type {type(output).__name__}; return a tensor, a "
        "tuple, or a mapping with the key 'logits'"
    )


def label_map(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Resize logits bilinearly to ``size`` and take the largest class of every pixel.

    Classes are resized a few at a time, so that 150 classes at 1024x2048 need no gigabytes.

    Shape:
        ``(B, classes, h, w)`` in, int64 ``(B, H, W)`` out.
    """
    height, width = size
    classes = max(1, _CHUNK_ELEMENTS // (logits.shape[0] * height * width))
    best: Tensor | None = None
    labels: Tensor | None = None
    for start in range(0, logits.shape[1], classes):
        part = logits[:, start : start + classes].float()
        if part.shape[-2:] != (height, width):
            part = F.interpolate(part, (height, width), mode="bilinear", align_corners=False)
        value, index = part.max(dim=1)
        if best is None or labels is None:
            best, labels = value, index
        else:
            better = value > best
            labels = torch.where(better, index + start, labels)
            best = torch.where(better, value, best)
    assert labels is not None
    return labels


def window_logits(
    model: nn.Module, images: Tensor, window: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """Run ``model`` on overlapping windows and average their logits, pixel by pixel.

    Windows start every ``stride`` pixels and the last one ends at the border; a picture smaller
    than the window is one window.

    Args:
        model: makes logits of a window, at any resolution.
        images: normalised pictures.
        window: height and width of a window, in pixels.
        stride: rows and columns from one window to the next, at most the window's.

    Shape:
        ``(B, 3, H, W)`` in, ``(B, classes, H, W)`` out.

    Raises:
        UsageError: if the stride leaves gaps between windows.
    """
    height, width = images.shape[-2:]
    if not all(0 < step <= side for step, side in zip(stride, window, strict=True)):
        raise UsageError(
            f"stride {tuple(stride)} with window {tuple(window)}: each stride must be at least 1 "
            "and at most the window's side, or pixels are never seen"
        )
    total: Tensor | None = None
    seen = torch.zeros(height, width, device=images.device)
    for top in _starts(height, window[0], stride[0]):
        for left in _starts(width, window[1], stride[1]):
            rows = slice(top, min(top + window[0], height))
            columns = slice(left, min(left + window[1], width))
            part = images[..., rows, columns]
            logits = logits_of(model(part)).float()
            if logits.shape[-2:] != part.shape[-2:]:
                logits = F.interpolate(
                    logits, part.shape[-2:], mode="bilinear", align_corners=False
                )
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[..., rows, columns] += logits
            seen[rows, columns] += 1
    assert total is not None
    return total / seen


def _starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side: every pixel lies in at least one."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]
