"""Clusters of points: k-means, and which centre is nearest."""

import torch
from torch import Tensor

__all__ = ["k_means", "nearest_of"]

MOST_POINTS = 8192
"""Points that decide where centres lie; more move them no further."""


def k_means(
    points: Tensor, count: int, *, rounds: int = 30, starts: int = 6, seed: int = 0
) -> Tensor:
    """Return the centres of at most ``count`` clusters, none of them empty.

    Args:
        points: (n, features); `MOST_POINTS` of them, evenly drawn, are taken where there are more.
        count: clusters.
        rounds: of reassignment, at most.
        starts: random ones, of which the best is taken.
        seed: of the starts.

    Source: Lloyd, Least squares quantization in PCM, 1982.
    """
    points = points[:: max(1, len(points) // MOST_POINTS)]
    generator = torch.Generator().manual_seed(seed)
    best, least = points.mean(0, keepdim=True), float("inf")
    if count == 1:
        return best
    for _ in range(starts):
        start = torch.randperm(len(points), generator=generator)[: min(count, len(points))]
        centres = points[start.to(points.device)].clone()
        before = None
        for _ in range(rounds):
            nearest = nearest_of(points, centres)
            if before is not None and torch.equal(nearest, before):
                break
            taken, before = nearest.unique(return_inverse=True)
            sums = points.new_zeros(len(taken), points.shape[1]).index_add_(0, before, points)
            centres = sums / torch.bincount(before)[:, None]
        error = float(torch.cdist(points, centres).min(1).values.square().sum())
        if error < least:
            best, least = centres, error
    return best


def nearest_of(points: Tensor, centres: Tensor) -> Tensor:
    """Return (n,): the centre that each of (n, features) points lies nearest to."""
    return torch.cdist(points, centres).argmin(1)
