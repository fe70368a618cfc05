"""What is planned for a group, and the reason that is shown where it is not compact."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate import GateConfig, attach, gate_model, gates, is_gated, plan_groups, remove
from dynprune.graph import find_groups
from tests.plain_models import Mlp

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
    assert {p.group.name for p in plans if p.mode == "compact"} == {"first.fc1", "second.fc1"}
    assert not is_gated(model)
    assert before == {
        name: (type(m), m.training, len(m._forward_hooks)) for name, m in model.named_modules()
    }
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_group_without_a_configuration_is_refused_for_the_reason_given(model):
    plans = planned(model, lambda name: "first" in name, ignored="not asked for")
    found = {p.group.name: (p.mode, p.reason) for p in plans}
    assert found["first.fc1"] == ("compact", None)
    assert found["second.fc1"] == ("refused", "not asked for")


def test_groups_of_a_part_that_is_gated_already_are_refused_and_the_rest_is_gated(model):
    inner = find_groups(model.first, CALL).groups
    gate_model(model.first, CALL, inner, {g.name: GateConfig(align=1) for g in inner})
    plans = {p.group.name: p for p in planned(model)}
    assert plans.pop("second.fc1").mode == "compact"
    assert {p.mode for p in plans.values()} == {"refused"}
    assert "it is in first, which is gated already" in {p.reason for p in plans.values()}
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


class Listed(nn.Module):
    """A hidden layer whose layers its code takes from a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.layers = [self.up, self.down]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers[1](torch.relu(self.layers[0](x)))


def test_a_model_that_takes_its_layers_from_a_list_runs_the_gated_ones_and_then_its_own():
    model, call = Listed().eval(), Example((torch.randn(2, 5, 16),))
    before = list(model.layers)
    groups = find_groups(model, call).groups
    gate_model(model, call, groups, {group.name: GateConfig() for group in groups})
    assert gates(model)
    assert [type(layer).__name__ for layer in model.layers] == ["DynamicLinear"] * 2
    assert model.layers[1].weight.stride() == (1, 16)  # by column, as compact runs gather it
    remove(model)
    assert all(a is b for a, b in zip(model.layers, before, strict=True))
