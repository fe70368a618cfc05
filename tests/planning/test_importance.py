"""Importance of the user's own orders the neurons, and is refused where it is none."""

import pytest
import torch
from torch import nn

import dynprune
from dynprune.errors import UsageError
from dynprune.gate import gates


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)).eval()


def gated(importance, **changes):
    recipe = dynprune.load_recipe("any", ["sparsity.final=0.5", "apply.gate.order=fixed"])
    x = torch.randn(6, 4, 8)
    settings = {"calibration": x.split(1), "importance": importance} | changes
    return dynprune.apply(make(), x, recipe, **settings)


@pytest.mark.parametrize("per_input", [True, False])
def test_neurons_are_kept_in_the_order_of_the_users_importance(per_input):
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1)) + 1.0

    def importance(moments):
        return order.expand_as(moments.first) if per_input else order

    (gate,) = gates(gated(importance)).values()
    assert torch.equal(gate.prior.argsort(), order.argsort())


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (torch.ones(3), r"importance gave \(3,\) for 0, of 32 neurons on 6 inputs"),
        (torch.ones(32).neg(), "negative or infinite numbers for 0"),
        (torch.full((32,), torch.nan), "negative or infinite numbers for 0"),
        ([1.0] * 32, "importance gave list"),
    ],
)
def test_what_is_no_importance_is_refused_and_the_model_is_as_before(found, text):
    model, x = make(), torch.randn(6, 4, 8)
    dense, recipe = model(x), dynprune.load_recipe("any")
    with pytest.raises(UsageError, match=text):
        dynprune.apply(model, x, recipe, calibration=[x], importance=lambda moments: found)
    assert [type(module) for module in model] == [nn.Linear, nn.GELU, nn.Linear]
    assert torch.equal(model(x), dense)


def test_importance_without_inputs_to_measure_is_refused():
    with pytest.raises(UsageError, match="none are measured: give calibration"):
        gated(lambda moments: moments.second, calibration=None)


def test_importance_sees_the_calibration_inputs():
    seen = []

    def importance(moments):
        seen.append(tuple(moments.first.shape))
        return moments.second

    gated(importance)
    assert seen == [(6, 32)]
