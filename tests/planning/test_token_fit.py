"""Predictors of tokens are the closed forms that they claim to be."""

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.gate import GateConfig, gate_model, gates, recording
from dynprune.graph import find_groups
from dynprune.planning.calibrate import calibrate
from dynprune.planning.refit import refit_consumers
from dynprune.planning.token_fit import _reduced
from tests.gate.zoo_laws import run
from tests.plain_models import SwiGlu

ROUNDING = 1e-3  # of float32 sums over a few hundred tokens, and of a small ridge


class OneLayer(nn.Module):
    """A hidden layer whose neurons are always active, so that their size is linear in the token."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 5)
        with torch.no_grad():
            self.up.bias.fill_(4.0).add_(torch.randn(16))

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def calls_of(count=12):
    random = torch.Generator().manual_seed(1)
    return [Example((torch.randn(3, 20, 6, generator=random),)) for _ in range(count)]


def gated(model, calls, **config):
    groups = find_groups(model, calls[0]).groups
    settings = GateConfig(**{"prune_ratio": 0.5, "align": 1, "grain": "token", **config})
    gate_model(model, calls[0], groups, {group.name: settings for group in groups})
    calibrate(model, calls)
    (gate,) = gates(model).values()
    return gate


def kept_by(model, call):
    with recording() as seen, torch.no_grad():
        call.run(model)
    ((observation,),) = seen.values()
    return observation.selection.keep


def largest(importance, kept=8):
    best = importance.topk(kept, dim=1).indices
    return torch.zeros_like(importance).scatter(1, best, 1.0)


def test_where_importance_is_linear_in_the_token_the_largest_are_kept():
    model, calls = OneLayer().eval(), calls_of()
    gated(model, calls, hidden=6, compensation="zero")
    (x,) = calls[0].tensors
    with torch.no_grad():
        size = torch.relu(x @ model.up.weight.t() + model.up.bias) * model.down.weight.norm(dim=0)
    agree = (kept_by(model, calls[0]) * largest(size.flatten(0, 1))).sum() / (8 * 60)
    assert agree > 0.99


def test_a_reduced_map_loses_the_least_that_any_of_its_rank_does():
    random = torch.Generator().manual_seed(2)
    tokens = torch.randn(300, 7, generator=random, dtype=torch.float64)
    tokens = tokens @ torch.randn(7, 7, generator=random, dtype=torch.float64)
    slope = torch.randn(7, 20, generator=random, dtype=torch.float64)
    down, up = _reduced(tokens.t() @ tokens / len(tokens), slope, 3)
    left, strength, right = torch.linalg.svd(tokens @ slope, full_matrices=False)
    wanted = left[:, :3] * strength[:3] @ right[:3]
    found = tokens @ down.t() @ up.t()
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-8


def test_a_rank_above_that_of_the_map_changes_nothing():
    square, slope = torch.eye(3, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    down, up = _reduced(square, slope, 8)
    assert down.shape == (8, 3)
    assert torch.allclose((up @ down).t(), slope)


def test_both_at_full_rank_keep_the_neurons_that_are_largest():
    model, calls = nn.Sequential(SwiGlu(6, 16)).eval(), calls_of()
    gated(model, calls, predict="both", hidden=6)
    (x,) = calls[0].tensors
    layer = SwiGlu(6, 16)
    layer.load_state_dict(
        {
            n: p
            for n, p in model[0].state_dict().items()
            if n.count(".") == 1 and n.split(".")[1] in ("weight", "bias")
        }
    )
    with torch.no_grad():
        size = (torch.nn.functional.silu(layer.w1(x)) * layer.w3(x)).abs()
        size = size * layer.w2.weight.norm(dim=0)
    agree = (kept_by(model, calls[0]) * largest(size.flatten(0, 1))).sum() / (8 * 60)
    assert agree > 0.99


def test_preactivations_at_full_rank_keep_the_neurons_that_are_furthest_from_their_means():
    model, calls = OneLayer().eval(), calls_of()
    with torch.no_grad():
        model.up.bias.sub_(4.0)
    gate = gated(model, calls, predict="preactivation", hidden=6)
    (x,) = calls[0].tensors
    with torch.no_grad():
        off = torch.relu(x @ model.up.weight.t() + model.up.bias) - gate.mean
        size = off.abs() * model.down.weight.norm(dim=0)
    agree = (kept_by(model, calls[0]) * largest(size.flatten(0, 1))).sum() / (8 * 60)
    assert agree > 0.99
    assert float(gate.predictor.spread.detach().max()) < ROUNDING


def test_what_an_estimate_loses_is_measured_behind_the_activation():
    model, calls = OneLayer().eval(), calls_of(4)
    with torch.no_grad():
        model.up.bias.sub_(4.0)
    gate = gated(model, calls, predict="preactivation", hidden=2)
    tokens = torch.cat([call.args[0] for call in calls]).flatten(0, 1)
    with torch.no_grad():
        lost = torch.relu(gate.predictor.estimate(tokens)) - torch.relu(
            tokens @ model.up.weight.t() + model.up.bias
        )
    wanted = lost.square().mean(0).sqrt()
    assert float((gate.predictor.spread.detach() - wanted).abs().max()) < ROUNDING
    assert float(wanted.max()) > 10 * ROUNDING


@pytest.mark.parametrize("predict", ["low-rank", "both"])
def test_calibration_moves_no_value_of_a_model_that_skips_nothing(predict):
    model, calls = nn.Sequential(SwiGlu(6, 16)).eval(), calls_of()
    wanted = run(model, calls[0])[0]
    gate = gated(model, calls, predict=predict)
    gate.set_prune_ratio(0.0)
    assert float((run(model, calls[0])[0] - wanted).abs().max()) < 1e-5


def test_padding_takes_no_part_in_the_fit():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = OneLayer()

        def forward(self, x, attention_mask=None):
            return self.layer(x)

    model, calls = Masked().eval(), calls_of()
    mask = torch.ones(3, 20, dtype=torch.long)
    mask[:, 15:] = 0
    padded = [Example((c.args[0],), {"attention_mask": mask}) for c in calls]
    other = [
        Example((torch.where(mask[..., None] > 0, c.args[0], 50.0 * c.args[0]),), dict(c.kwargs))
        for c in padded
    ]
    scores = []
    for version in (padded, other):
        torch.manual_seed(3)
        model = Masked().eval()
        gate = gated(model, version, hidden=4)
        scores.append((gate.predictor.up.weight @ gate.predictor.down.weight).detach())
    assert float((scores[0] - scores[1]).abs().max() / scores[0].abs().max()) < ROUNDING


def test_a_refit_with_tokens_masks_is_the_least_squares_of_them():
    model, calls = OneLayer().eval(), calls_of()
    dense = [run(model, call)[0] for call in calls]
    gate = gated(model, calls, hidden=4)
    rows, wanted = [], []
    for call, target in zip(calls, dense, strict=True):
        (x,) = call.tensors
        with torch.no_grad():
            hidden = torch.relu(x @ model.up.weight.t() + model.up.bias).flatten(0, 1)
        z = (hidden - gate.mean.detach()) * kept_by(model, call)
        rows.append(torch.cat([z, torch.ones(len(z), 1)], 1).double())
        wanted.append(target.flatten(0, 1))
    assert refit_consumers(model, calls, ridge=1e-9) == 1
    best = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted), driver="gelsd").solution
    found = torch.cat([run(model, call)[0].flatten(0, 1) for call in calls])
    assert float((found - torch.cat(rows) @ best).abs().max()) < ROUNDING
