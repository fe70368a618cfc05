"""Top-r: how many neurons an input keeps, and which."""

import torch
from torch import Tensor

__all__ = ["keep_mask", "kept_count", "kept_values", "top_r"]

LEVELS = 4  # an alignment never leaves a segment fewer than this many sizes to choose from


def kept_count(size: int, prune_ratio: float, align: int = 1) -> int:
    """Return how many of ``size`` neurons are kept at a prune ratio.

    The exact number, ``(1 - prune_ratio) * size``, is rounded to the nearest multiple of
    ``align``; at least one multiple is kept. In a segment so small that ``align`` would leave
    fewer than four sizes (a 32-wide head under ``align=16``), the largest power of two that does
    takes its place.

    Args:
        size: neurons of one segment: a whole hidden layer, or one attention head.
        prune_ratio: share that is skipped, 0 to 1 (r of DynaSegFormer, arXiv 2111.09499, Eq. 3).
        align: multiple that matrix kernels run well at, in neurons.

    Raises:
        ValueError: where ``prune_ratio`` is outside [0, 1) or ``align`` is not positive.

    Example:
        >>> kept_count(128, 0.3, 8), kept_count(32, 0.3, 16), kept_count(128, 0.0, 16)
        (88, 24, 128)
    """
    if not 0.0 <= prune_ratio < 1.0:
        raise ValueError(f"prune_ratio={prune_ratio} of a gate must be at least 0 and below 1.")
    if align < 1:
        raise ValueError(f"align={align} must be a positive number of neurons.")
    if prune_ratio == 0.0:
        return size
    while align > 1 and size < LEVELS * align:
        align = 1 << (align - 1).bit_length() - 1
    multiples = int((1.0 - prune_ratio) * size / align + 0.5)
    return min(size, max(1, multiples) * align)


def top_r(scores: Tensor, kept: int, segments: int = 1) -> Tensor:
    """Select the ``kept`` best neurons of each segment.

    Args:
        scores: one score a neuron.
        kept: neurons kept in each segment.
        segments: equal parts that each keep ``kept`` neurons (attention heads), neurons in
            segment-major order.

    Shape:
        - scores: (B, neurons)
        - Output: (B, segments * kept), int64, ascending along each row
    """
    batch, neurons = scores.shape
    width = neurons // segments
    if kept == width:
        return torch.arange(neurons, device=scores.device).expand(batch, neurons)
    if segments == 1:
        return scores.topk(kept, dim=-1, sorted=False).indices.sort(dim=-1).values
    best = scores.view(batch, segments, width).topk(kept, dim=-1, sorted=False).indices
    first = torch.arange(0, neurons, width, device=scores.device)[:, None]
    return (best.sort(dim=-1).values + first).view(batch, segments * kept)


def kept_values(values: Tensor, index: Tensor) -> Tensor:
    """Take the values (neurons,) of the kept neurons (B, K), for each instance its own."""
    return values.index_select(0, index.flatten()).view(index.shape)


def keep_mask(index: Tensor, neurons: int, dtype: torch.dtype) -> Tensor:
    """Turn kept indices (B, K) into a mask (B, neurons) of ones and zeros."""
    mask = torch.zeros(index.shape[0], neurons, dtype=dtype, device=index.device)
    return mask.scatter(1, index, 1.0)
