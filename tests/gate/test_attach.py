"""What is planned for a group, and the reason that is shown where it is not compact."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate import GateConfig, attach, plan_groups
from dynprune.graph import find_groups

#: How a tracer calls its nodes and the tensors that code makes by itself.
NODE = re.compile(r"(?<![\w.])(?:[a-z]+(?:_[a-z]+)*_\d+|%\w+|getitem|arange|linspace)(?![\w.])")


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)).eval()


@pytest.mark.parametrize("asked", [False, True])
def test_a_group_that_could_only_be_masked_is_gated_on_request_alone(monkeypatch, asked):
    why = "its code does not follow narrow neurons"

    def only_masked(_model, plans, *_):
        return [replace(plan, mode="masked", reason=why) for plan in plans]

    monkeypatch.setattr(attach, "verify", only_masked)
    model, call = mlp(), Example((torch.randn(2, 5, 16),))
    groups = find_groups(model, call).groups
    configs = {group.name: GateConfig(masked=asked) for group in groups}
    plans = plan_groups(model, call, groups, configs)
    assert [(plan.mode, plan.reason) for plan in plans] == [("masked" if asked else "refused", why)]


class Constants(nn.Module):
    """Hidden neurons that meet numbers which the code makes by itself, and odd operations."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 32), nn.Linear(32, 16)
        self.three, self.four = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.two(torch.relu(self.one(x)) * torch.arange(1, 33))
        hidden = self.three(x) * torch.linspace(0, 1, 32)
        return x + self.four(hidden.sort(-1).values)


def test_reasons_name_modules_and_no_nodes_of_the_trace():
    model, call = Constants().eval(), Example((torch.randn(2, 5, 16),))
    groups = find_groups(model, call).groups
    plans = plan_groups(model, call, groups, {group.name: GateConfig() for group in groups})
    reasons = {plan.group.name: plan.reason or "" for plan in plans}
    assert "a constant of the model" in reasons["one"]
    assert not [reason for reason in reasons.values() if NODE.search(reason)], reasons
