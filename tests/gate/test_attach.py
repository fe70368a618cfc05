"""Planning and gating: what is refused says why, and the model is as before."""

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.gate import GateConfig, gate_model, gates, is_gated, plan_groups, remove
from dynprune.graph import find_groups
from tests.plain_models import Mlp


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Mlp(8, 32), Mlp(8, 16)

    def forward(self, x):
        return self.second(x + self.first(x))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Two().eval()


CALL = Example((torch.randn(2, 5, 8),))


def planned(model, chosen=lambda name: True, **options):
    groups = find_groups(model, CALL).groups
    configs = {g.name: GateConfig(align=1) for g in groups if chosen(g.name)}
    return plan_groups(model, CALL, groups, configs, **options)


def test_planning_leaves_modules_hooks_weights_and_modes_as_they_were(model):
    model.first.train()
    before = {name: (type(m), m.training, len(m._forward_hooks)) for name, m in
              model.named_modules()}  # fmt: skip
    state = {key: value.clone() for key, value in model.state_dict().items()}
    plans = planned(model)
    assert {plan.mode for plan in plans} == {"compact"}
    assert not is_gated(model)
    assert before == {
        name: (type(m), m.training, len(m._forward_hooks)) for name, m in model.named_modules()
    }
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_group_without_a_configuration_is_refused_for_the_reason_given(model):
    plans = planned(model, lambda name: "first" in name, ignored="not asked for")
    assert {p.group.name: (p.mode, p.reason) for p in plans} == {
        "first.fc1": ("compact", None),
        "second.fc1": ("refused", "not asked for"),
    }


def test_groups_of_a_part_that_is_gated_already_are_refused_and_the_rest_is_gated(model):
    inner = find_groups(model.first, CALL).groups
    gate_model(model.first, CALL, inner, {g.name: GateConfig(align=1) for g in inner})
    plans = {p.group.name: p for p in planned(model)}
    assert plans.pop("second.fc1").mode == "compact"
    assert plans
    assert {p.reason for p in plans.values()} == {"it is in first, which is gated already"}
    assert is_gated(model.first)
    assert len(gates(model.first)) == 1


def test_gating_puts_in_what_was_planned(model):
    groups = find_groups(model, CALL).groups
    configs = {group.name: GateConfig(align=1) for group in groups}
    record = gate_model(model, CALL, groups, configs)
    assert [p.to_json() for p in record.plans] == [p.to_json() for p in planned_again(model)]
    assert set(gates(model)) == {"first.fc1", "second.fc1"}


def planned_again(gated):
    remove(gated)
    plans = planned(gated)
    groups = find_groups(gated, CALL).groups
    gate_model(gated, CALL, groups, {group.name: GateConfig(align=1) for group in groups})
    return plans
