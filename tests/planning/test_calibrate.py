"""Calibration orders neurons and moves no value: with nothing skipped the model stays dense."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate import GateConfig, gate_model, gates, set_execution
from dynprune.graph import find_groups
from dynprune.planning.calibrate import calibrate
from tests.zoo import ZOO


class Residual(nn.Module):
    """A hidden layer beside a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(24, 96), nn.Linear(96, 24)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def inputs(kind: str, count: int) -> Tensor:
    """Inputs that are alike, loud and quiet, or all the same."""
    random = torch.Generator().manual_seed(count)
    x = torch.randn(count, 6, 24, generator=random)
    if kind == "loud and quiet":
        return x * torch.rand(count, 1, 1, generator=random) * 3
    return x[:1].expand_as(x).clone() if kind == "the same" else x


def calibrated(x: Tensor, **config):
    torch.manual_seed(0)
    model = Residual().eval()
    dense, example = copy.deepcopy(model), Example((x[:1],))
    groups = find_groups(model, example).groups
    settings = GateConfig(**{"prune_ratio": 0.5, "hidden_ratio": 0.5, **config})
    gate_model(model, example, groups, {group.name: settings for group in groups})
    calibrate(model, [Example((part,)) for part in x.split(1)])
    return model, dense


@pytest.mark.parametrize("execution", ["compact", "masked"])
@pytest.mark.parametrize("kind", ["alike", "loud and quiet", "the same"])
@pytest.mark.parametrize("count", [1, 2, 4, 12, 300])
def test_with_nothing_skipped_the_calibrated_model_is_the_dense_one(count, kind, execution):
    x = inputs(kind, count)
    model, dense = calibrated(x)
    for gate in gates(model).values():
        gate.set_prune_ratio(0.0)
    set_execution(model, execution)
    with torch.no_grad():
        error = (model(x) - dense(x)).abs().max() / dense(x).abs().max()
    assert error < 1e-5  # sums of 96 products in another order


@pytest.mark.parametrize("kind", ["alike", "loud and quiet"])
def test_kept_neurons_carry_values_of_one(kind):
    x = inputs(kind, 16)
    model, _ = calibrated(x)
    for gate in gates(model).values():
        with torch.no_grad():
            factor = gate.scores(x).factor
        assert factor is not None
        torch.testing.assert_close(factor, torch.ones_like(factor))


def test_what_all_inputs_share_of_a_neuron_is_in_its_base_score():
    x = inputs("loud and quiet", 16)
    model, _ = calibrated(x)
    (gate,) = gates(model).values()
    with torch.no_grad():
        moved = gate.scores(x).scores - gate.prior
        torch.testing.assert_close(moved.mean(0), torch.zeros(96), atol=1e-4, rtol=0)
        assert moved.std() > 0.1  # and the input has a say in it


@pytest.mark.parametrize("kind", ["alike", "loud and quiet"])
def test_the_first_gradient_reaches_the_predictor_and_beta(kind):
    x = inputs(kind, 16)
    model, _ = calibrated(x)
    model.train()
    model(x).square().sum().backward()
    (gate,) = gates(model).values()
    assert gate.predictor.up.weight.grad.abs().max() > 0
    assert kind == "alike" or gate.beta.grad.abs() > 0


def test_the_gradient_of_values_is_their_own_once_beta_has_grown():
    x = inputs("loud and quiet", 16)
    model, _ = calibrated(x)
    (gate,) = gates(model).values()
    with torch.no_grad():
        gate.beta.fill_(-0.3)
    found = []
    for mode in (True, False):
        model.train(mode)
        set_execution(model, "masked")
        gate.zero_grad()
        model(x).square().sum().backward()
        found.append(gate.predictor.up.weight.grad.clone())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["vit", "bert", "segformer"])
def test_whole_models_stay_dense_after_calibration(name):
    model, example = ZOO[name].build().eval(), ZOO[name].example()
    dense = copy.deepcopy(model)
    groups = find_groups(model, example).groups
    gate_model(model, example, groups, {group.name: GateConfig() for group in groups})
    calibrate(model, [example.batched(1, seed=seed) for seed in range(6)])
    for gate in gates(model).values():
        gate.set_prune_ratio(0.0)
    with torch.no_grad():
        found, wanted = (tensor_of(example.run(m)) for m in (model, dense))
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def tensor_of(output) -> Tensor:
    return output if isinstance(output, Tensor) else next(iter(output.values()))
