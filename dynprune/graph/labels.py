"""Channel labels: which neuron stands at each position of a traced tensor.

The labels of a tensor are an int32 tensor of the same shape: 0 where no neuron stands, otherwise
the id of one. Along axes on which labels do not change (batch, tokens, pixels) they are expanded
views with stride 0, so that they cost a channel axis of memory whatever the picture's size.
"""

import torch
from torch import Tensor

__all__ = ["columns", "compact", "ids", "overlay", "tidy", "varying"]


def compact(labels: Tensor) -> Tensor:
    """Shrink every expanded axis to size 1, without a copy."""
    for axis, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if stride == 0 and size > 1:
            labels = labels.narrow(axis, 0, 1)
    return labels


def tidy(labels: Tensor) -> Tensor:
    """Return labels that are constant along an axis the stride 0 there."""
    small = compact(labels)
    for axis, size in enumerate(small.shape):
        if size > 1:
            first = small.narrow(axis, 0, 1)
            if torch.equal(small, first.expand_as(small)):
                small = first
    return small.expand(labels.shape)


def varying(labels: Tensor) -> list[int]:
    """Axes along which tidy labels change."""
    return [
        axis
        for axis, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True))
        if size > 1 and stride != 0
    ]


def columns(labels: Tensor, axis: int) -> Tensor | None:
    """Read labels as a function of the position along one axis.

    Args:
        labels: tidy labels.
        axis: the channel axis.

    Returns:
        The id at each position of ``axis``, or None where labels change along another axis too.
    """
    axis %= labels.dim()
    if any(a != axis for a in varying(labels)):
        return None
    index = tuple(slice(None) if a == axis else 0 for a in range(labels.dim()))
    return labels[index]


def ids(labels: Tensor) -> Tensor:
    """Every id among labels, once, in rising order."""
    found = compact(labels).unique()
    return found[found != 0]


def overlay(first: Tensor, second: Tensor) -> Tensor:
    """Take ``first`` where it names a neuron, else ``second``; both broadcast."""
    a, b = compact(first), compact(second)
    shape = torch.broadcast_shapes(first.shape, second.shape)
    return tidy(torch.where(a != 0, a, b).expand(shape))
