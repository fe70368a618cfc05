"""Experts are bought where they take most error off for their bytes, and nowhere else."""

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.gate import GateConfig, plan_groups
from dynprune.graph import find_groups
from dynprune.planning.expert_choice import choose_counts

PLENTY = 1 << 30


class Two(nn.Module):
    """A hidden layer whose inputs come from two worlds, and one that sees noise alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
        self.second = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, x, noise):
        return self.first(x), self.second(noise)


def calls(count):
    random = torch.Generator().manual_seed(1)
    centres = 4 * torch.randn(2, 16, generator=random)
    return [
        Example(
            (
                centres[i // 2 % 2] + torch.randn(1, 80, 16, generator=random),
                torch.randn(1, 80, 16, generator=random),
            )
        )
        for i in range(count)
    ]


@pytest.fixture
def planned():
    model, example = Two().eval(), calls(1)[0]
    groups = find_groups(model, example).groups
    config = GateConfig(order="fixed", prune_ratio=0.75, align=1)
    return model, plan_groups(model, example, groups, {g.name: config for g in groups})


def test_choice_is_bought_where_inputs_differ_and_not_where_they_do_not(planned):
    model, plans = planned
    grains = {plan.group.name: "instance" for plan in plans}
    bought = {b.name: b for b in choose_counts(model, plans, calls(32), grains, budget=PLENTY)}
    first, second = bought["first.0"], bought["second.0"]
    assert first.experts >= 2
    assert first.left < 0.9 * first.error
    assert first.bytes > 0
    assert second.experts == 1
    assert second.reason == "no choice was worth a byte"
    assert second.bytes == 0


def test_nothing_is_bought_beyond_the_budget(planned):
    model, plans = planned
    grains = {plan.group.name: "instance" for plan in plans}
    bought = choose_counts(model, plans, calls(32), grains, budget=10)
    assert {one.experts for one in bought} == {1}
    assert any("budget" in one.reason for one in bought)


def test_too_few_inputs_buy_nothing(planned):
    model, plans = planned
    grains = {plan.group.name: "instance" for plan in plans}
    bought = choose_counts(model, plans, calls(3), grains, budget=PLENTY)
    assert {one.experts for one in bought} == {1}
    assert all("3 inputs do not tell" in one.reason for one in bought)
