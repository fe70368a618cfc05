"""Fitting a predictor in closed form."""

import torch

from dynprune.gate.predictor import GatePredictor
from dynprune.planning.fit import fit_predictor


def _data(count: int, features: int, neurons: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    summaries = torch.randn(count, features, generator=random)
    z = torch.nn.functional.layer_norm(summaries, (features,))
    left = torch.randn(features, rank, generator=random)
    right = torch.randn(rank, neurons, generator=random)
    return summaries, z @ left @ right + 3.0


def test_a_predictor_reproduces_a_map_of_its_own_rank() -> None:
    summaries, targets = _data(200, 12, 30, rank=4)
    predictor = GatePredictor(12, 30, hidden=8)
    gained = fit_predictor(predictor, summaries, targets)
    assert gained > 0.99
    with torch.no_grad():
        error = (predictor(summaries) - targets).abs().max() / targets.abs().max()
    assert error < 1e-2  # the ridge shrinks a little


def test_what_it_learns_holds_for_inputs_that_it_did_not_see() -> None:
    summaries, targets = _data(300, 12, 30, rank=4)
    predictor = GatePredictor(12, 30, hidden=8)
    fit_predictor(predictor, summaries[:200], targets[:200])
    with torch.no_grad():
        left = (predictor(summaries[200:]) - targets[200:]).square().sum()
    spread = (targets[200:] - targets[:200].mean(0)).square().sum()
    assert left < 0.01 * spread


def test_targets_that_do_not_depend_on_the_input_give_their_mean() -> None:
    random = torch.Generator().manual_seed(1)
    summaries, noise = torch.randn(40, 12, generator=random), torch.randn(40, 6, generator=random)
    predictor = GatePredictor(12, 6, hidden=8)
    assert fit_predictor(predictor, summaries, noise) < 0.2
    constant = GatePredictor(12, 6, hidden=8)
    assert fit_predictor(constant, summaries, torch.full((40, 6), 2.5)) == 0.0
    with torch.no_grad():
        torch.testing.assert_close(constant(summaries), torch.full((40, 6), 2.5))
