"""Tokens choose for themselves where they do not meet between a group's layers."""

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.gate import GateConfig, plan_groups, remove
from dynprune.graph import find_groups
from dynprune.planning.grain import settle_grains
from tests.gate.zoo_laws import gated_animal


class Meeting(nn.Module):
    """A hidden layer whose neurons lose their mean over the tokens."""

    def __init__(self, meets):
        super().__init__()
        self.up, self.down, self.meets = nn.Linear(8, 32), nn.Linear(32, 8), meets

    def forward(self, x):
        hidden = torch.relu(self.up(x))
        if self.meets:
            hidden = hidden - hidden.mean(1, keepdim=True)
        return self.down(hidden)


def settled(model, example, wanted=None):
    groups = find_groups(model, example).groups
    configs = {group.name: GateConfig(order="fixed") for group in groups}
    plans = plan_groups(model, example, groups, configs, allow_causal=True)
    return settle_grains(model, plans, example, wanted)


@pytest.mark.parametrize("meets", [False, True])
def test_tokens_that_meet_choose_together(meets):
    example = Example((torch.randn(2, 6, 8),))
    grains, _ = settled(Meeting(meets).eval(), example)
    assert list(grains.values()) == ["instance" if meets else "token"]
    grains, reasons = settled(Meeting(meets).eval(), example, "token")
    assert bool(grains) != meets
    assert [("meet" in why) for why in reasons.values()] == [True] * meets


def test_a_depthwise_convolution_lets_tokens_meet_and_heads_have_no_experts():
    model, example, _, record = gated_animal("segformer", order="fixed")
    remove(model)
    grains, reasons = settle_grains(model, record.plans, example, None)
    assert set(grains.values()) == {"instance"}
    heads = {plan.group.name for plan in record.plans if plan.group.heads and plan.reason is None}
    assert heads
    assert all("heads" in reasons[name] for name in heads)
