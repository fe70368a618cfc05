"""Clusters are found where points lie apart, and none is empty."""

import torch

from dynprune.planning.clusters import k_means, nearest_of


def test_more_clusters_than_points_leave_none_empty():
    points = torch.randn(3, 2)
    assert len(k_means(points, 8)) == 3
    assert len(k_means(torch.zeros(5, 2), 3)) == 1


def test_clusters_that_lie_apart_are_found():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (centres[:, None] + 0.1 * torch.randn(3, 20, 2)).flatten(0, 1)
    found = k_means(points, 3)
    assert torch.cdist(centres, found).min(1).values.max() < 0.2
    assert len(nearest_of(points, found).unique()) == 3
