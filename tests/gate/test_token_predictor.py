"""Predictors of tokens compute their formulas, and say what they cost."""

import torch
import torch.nn.functional as F

from dynprune.gate.token_predictor import (
    LowRankPredictor,
    PreactivationPredictor,
    ProjectionPredictor,
)

TOKENS = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
PROJECTION = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))


def filled(predictor):
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    return predictor


def test_a_low_rank_map_is_linear_of_that_rank_and_starts_near_zero():
    predictor = LowRankPredictor(6, 16, 3)
    assert predictor(TOKENS).detach().abs().max().item() < 1e-5
    filled(predictor)
    with torch.no_grad():
        slope = predictor(torch.eye(6)) - predictor(torch.zeros(1, 6))
        assert torch.linalg.matrix_rank(slope) == 3
        expected = TOKENS @ slope + predictor(torch.zeros(1, 6))
        assert torch.allclose(predictor(TOKENS), expected, atol=1e-5)
    assert predictor.macs == 3 * (6 + 16)


def test_a_preactivation_predictor_expects_the_distance_from_the_mean():
    predictor = filled(PreactivationPredictor(6, 16, 3, "gelu"))
    with torch.no_grad():
        off = F.gelu(predictor.estimate(TOKENS)) - predictor.center
        wanted = predictor.scale * torch.sqrt(off**2 + predictor.spread**2)
        assert torch.allclose(predictor(TOKENS), wanted, atol=1e-5)
    assert predictor.macs == 3 * (6 + 16)


def test_a_gate_projection_alone_costs_nothing_beside_itself():
    predictor = filled(ProjectionPredictor(6, 16, 0, "silu"))
    wanted = F.silu(PROJECTION).abs() * predictor.scale
    assert torch.allclose(predictor(TOKENS, PROJECTION), wanted)
    assert predictor.macs == 0


def test_both_multiply_the_gate_by_the_size_that_is_expected_of_the_other_factor():
    predictor = filled(ProjectionPredictor(6, 16, 3, "relu"))
    with torch.no_grad():
        other = torch.sqrt(predictor.estimate(TOKENS) ** 2 + predictor.spread**2)
        wanted = F.relu(PROJECTION) * predictor.scale * other
        assert torch.allclose(predictor(TOKENS, PROJECTION), wanted, atol=1e-5)
    assert predictor.macs == 3 * (6 + 16)
