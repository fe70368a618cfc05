"""What a layer does to its preactivations is found by running, or refused with the reason."""

import pytest
import torch
from torch import nn

from dynprune.example import Example
from tests.gate.zoo_laws import gated_per_token
from tests.plain_models import SwiGlu


class Layer(nn.Module):
    """A hidden layer with an activation."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 6)
        self.between = between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


def test_a_layer_without_a_gate_projection_says_so():
    _, record = gated_per_token(
        Layer(torch.relu).eval(), Example((torch.randn(2, 5, 6),)), predict="gate-projection"
    )
    (plan,) = record.plans
    assert plan.reason.startswith("it has no gate projection to choose by: its neurons come from 1")


@pytest.mark.parametrize(
    ("between", "activation"),
    [(nn.GELU(), "gelu"), (nn.GELU("tanh"), "gelu_tanh"), (nn.SiLU(), "silu"), (nn.Tanh(), None)],
)
def test_the_activation_behind_a_layer_is_found_by_running(between, activation):
    example = Example((torch.randn(2, 5, 6),))
    _, record = gated_per_token(Layer(between).eval(), example, predict="preactivation")
    (plan,) = record.plans
    assert plan.config.activation == activation
    assert (plan.mode == "refused") == (activation is None)


def test_a_gated_layer_has_no_one_preactivation():
    example = Example((torch.randn(2, 5, 6),))
    model = nn.Sequential(SwiGlu(6, 16)).eval()
    _, record = gated_per_token(model, example, predict="preactivation")
    (plan,) = record.plans
    assert "its neurons come from 2 layers, and not from 1" in plan.reason
