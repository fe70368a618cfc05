"""Moments are solved to what a solver of the whole system finds."""

import pytest
import torch

from dynprune.planning.least_squares import Moments


def tokens(count=200, inputs=7, outputs=3):
    random = torch.Generator().manual_seed(0)
    z = torch.randn(count, inputs, generator=random, dtype=torch.float64)
    t = torch.randn(count, outputs, generator=random, dtype=torch.float64) + z[:, :outputs]
    return z, t


@pytest.mark.parametrize("bias", [True, False])
def test_without_a_ridge_it_is_ordinary_least_squares(bias):
    z, t = tokens()
    moments = Moments.empty(7, 3)
    for some, others in zip(z.split(60), t.split(60), strict=True):
        moments.add(some, others)
    matrix, constant = moments.solve(torch.zeros(3, 7), 1e-12, bias=bias)
    rows = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1) if bias else z
    best = torch.linalg.lstsq(rows, t).solution.t()
    assert torch.allclose(matrix, best[:, :7], atol=1e-8)
    assert torch.allclose(constant, best[:, 7] if bias else torch.zeros(3, dtype=z.dtype))


def test_a_ridge_holds_the_solution_to_the_weight():
    z, t = tokens()
    moments = Moments.empty(7, 3)
    moments.add(z, t)
    weight = torch.randn(3, 7)
    off = [
        float((moments.solve(weight, ridge)[0] - weight).norm()) for ridge in (1e-6, 1.0, 1e3, 1e9)
    ]
    assert off == sorted(off, reverse=True)
    assert off[-1] < 1e-6


def test_columns_of_what_is_always_masked_stay():
    z, t = tokens()
    z[:, [1, 4]] = 0
    moments = Moments.empty(7, 3)
    moments.add(z, t)
    weight = torch.randn(3, 7)
    matrix, _ = moments.solve(weight)
    assert torch.equal(matrix[:, [1, 4]], weight[:, [1, 4]].double())
    alone = Moments.empty(5, 3)
    kept = [0, 2, 3, 5, 6]
    alone.add(z[:, kept], t)
    assert torch.allclose(matrix[:, kept], alone.solve(weight[:, kept])[0])


def test_masks_may_differ_from_token_to_token():
    z, t = tokens()
    z = z * (torch.rand(z.shape) < 0.5)
    at_once, one_by_one = Moments.empty(7, 3), Moments.empty(7, 3)
    at_once.add(z, t)
    for row, wanted in zip(z, t, strict=True):
        one_by_one.add(row[None], wanted[None])
    weight = torch.randn(3, 7)
    assert torch.allclose(at_once.solve(weight)[0], one_by_one.solve(weight)[0])


def test_inputs_that_never_change_cannot_be_fitted():
    moments = Moments.empty(7, 3)
    moments.add(torch.zeros(10, 7), torch.randn(10, 3))
    assert moments.solve(torch.zeros(3, 7)) is None
    moments.add(torch.full((1, 7), torch.nan), torch.zeros(1, 3))
    assert moments.solve(torch.zeros(3, 7)) is None
