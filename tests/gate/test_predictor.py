"""A summary of tokens is that of the tokens that count."""

import pytest
import torch
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate import GateConfig, NeuronGate, gate_model, gates
from dynprune.gate.predictor import Pool, pool_tokens, pooled_width
from dynprune.graph import find_groups

POOLS: tuple[Pool, ...] = ("mean", "mean-std", "mean-max")


def by_hand(tokens: Tensor, pool: Pool) -> Tensor:
    mean = tokens.mean(1)
    if pool == "mean":
        return mean
    if pool == "mean-max":
        return torch.cat([mean, tokens.max(1).values], -1)
    return torch.cat([mean, tokens.std(1, correction=0)], -1)


@pytest.mark.parametrize("pool", POOLS)
def test_a_summary_is_what_its_name_says(pool: Pool) -> None:
    tokens = torch.randn(2, 7, 3)
    summary = pool_tokens(tokens, pool)
    assert summary.shape[-1] == pooled_width(3, pool)
    torch.testing.assert_close(summary, by_hand(tokens, pool), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", POOLS)
def test_padding_does_not_count(pool: Pool) -> None:
    tokens = torch.randn(2, 7, 3)
    tokens[0, 4:] = 1e3
    real = torch.ones(2, 7, dtype=torch.bool)
    real[0, 4:] = False
    summary = pool_tokens(tokens, pool, real)
    alone = torch.cat([by_hand(tokens[:1, :4], pool), by_hand(tokens[1:], pool)])
    torch.testing.assert_close(summary, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", POOLS)
def test_every_summary_leaves_a_fresh_gate_the_identity(pool: Pool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 4)).eval()
    example = Example((torch.randn(2, 5, 6),))
    want = example.run(model)
    groups = find_groups(model, example).candidates
    gate_model(model, example, groups, {g.name: GateConfig(0.0, pool=pool) for g in groups})
    assert gates(model)
    torch.testing.assert_close(example.run(model), want, rtol=1e-5, atol=1e-5)


class Own(nn.Module):
    def __init__(self, features, neurons, macs=7):
        super().__init__()
        self.map = nn.Linear(features, neurons)
        self.macs = macs

    def forward(self, summary):
        return self.map(summary)


def test_a_predictor_of_ones_own_is_asked_and_a_fresh_gate_is_the_teacher():
    gate = NeuronGate("g", "ffn", 6, 8, 0, config=GateConfig(align=1, predictor=Own))
    assert isinstance(gate.predictor, Own)
    assert gate.macs == 7
    summary = torch.randn(3, 6)
    found = gate.scores_of(summary)
    assert torch.equal(found.scores, gate.predictor(summary))
    assert torch.equal(found.factor, torch.ones(3, 8))  # though it gives no zeros


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (lambda features, neurons: "x", "predictor gave a str; it must give an nn.Module"),
        (nn.Linear, "predictor Linear does not say what it costs: give it an attribute macs"),
        (lambda features, neurons: Own(features, 3), r"gave \(2, 3\) for \(2, 6\) pooled inputs"),
    ],
)
def test_what_is_no_predictor_is_refused(factory, text):
    with pytest.raises(UsageError, match=text):
        NeuronGate("g", "ffn", 6, 8, 0, config=GateConfig(predictor=factory))
