"""What is pruned goes where it costs the output least, and the sum of what is saved stays."""

import doctest
import itertools
import random

import pytest
import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate import (
    GateConfig,
    attached,
    gate_model,
    gates,
    inject,
    remove,
    set_execution,
)
from dynprune.graph import find_groups
from dynprune.measure.macs import analytic
from dynprune.planning import distribute
from dynprune.planning.calibrate import calibrate, start_from_weights
from dynprune.planning.distribute import Choice, SavedMacs, distribute_by_sensitivity, spread
from tests.zoo import ZOO


class TwoBlocks(nn.Module):
    """Two hidden layers of one size, one of which hardly matters."""

    def __init__(self, small: float) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(8, 64) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(64, 8) for _ in range(2))
        with torch.no_grad():
            self.down[1].weight.mul_(small)

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return x


def distributed(model, example, calls):
    grouping = find_groups(model, example)
    configs = {g.name: GateConfig(prune_ratio=0.5, align=4) for g in grouping.groups}
    plans = gate_model(model, example, grouping.groups, configs).plans
    start_from_weights(model)
    calibrate(model, calls)
    savings = SavedMacs(grouping.costs, plans)
    try:
        return plans, distribute_by_sensitivity(model, savings, calls), grouping
    finally:
        remove(model)


def macs(model, plans, grouping):
    """Count what a model would cost with these plans, from the gates themselves."""
    inject(model, plans)
    keep = {name: gate.keep_ratio for name, gate in gates(model).items()}
    return sum(analytic(grouping.costs, keep, {p.group.name: p.mode for p in plans}).values())


def test_the_layer_that_matters_less_skips_more():
    model = TwoBlocks(small=1e-3).eval()
    calls = [Example((torch.randn(1, 10, 8),)) for _ in range(4)]
    _, plans, _ = distributed(model, calls[0], calls)
    ratios = {plan.group.name: plan.config.prune_ratio for plan in plans}
    assert ratios["up.1"] >= 0.85
    assert ratios["up.0"] <= 0.2  # what is left to save, rounded to four neurons


def test_the_model_costs_no_more_than_with_one_ratio_for_all():
    model, example = ZOO["segformer"].made()
    calls = [example.batched(1, seed=seed) for seed in range(2)]
    uniform, spread_out, grouping = distributed(model, example, calls)
    assert not gates(model)
    assert {p.mode for p in spread_out} == {p.mode for p in uniform}
    assert len({p.config.prune_ratio for p in spread_out}) > 2
    again, _ = ZOO["segformer"].made()
    cost = macs(model, spread_out, grouping)
    assert cost <= macs(again, uniform, grouping)
    with torch.no_grad():
        compact = example.run(model).logits
        set_execution(model, "masked")
        assert torch.allclose(compact, example.run(model).logits, atol=1e-5)


def test_groups_of_one_attention_keep_equally_many():
    model, example = ZOO["vit"].made()
    _, plans, _ = distributed(model, example, [example.batched(1, seed=s) for s in range(3)])
    by_heads = {}
    for plan in plans:
        if plan.heads:
            by_heads.setdefault(plan.heads, set()).add(plan.config.prune_ratio)
    assert by_heads
    assert all(len(ratios) == 1 for ratios in by_heads.values())


def test_a_refused_group_stays_refused_for_its_reason():
    model, example = ZOO["vit"].made()
    grouping = find_groups(model, example)
    configs = {g.name: GateConfig(align=4) for g in grouping.groups if g.kind == "ffn"}
    before = gate_model(model, example, grouping.groups, configs).plans
    savings = SavedMacs(grouping.costs, before)
    after = distribute_by_sensitivity(model, savings, [example])
    assert [(p.mode, p.reason) for p in after] == [(p.mode, p.reason) for p in before]


class Counted(nn.Module):
    """Two blocks, of which the first counts its runs; a layer between them may remember."""

    def __init__(self, *, remembers: bool) -> None:
        super().__init__()
        self.first, self.second = Hidden(), Hidden()
        self.remembers, self.note = remembers, None

    def forward(self, x: Tensor) -> Tensor:
        self.first.last = None
        y = self.first(x)
        if self.remembers:  # what the block left beside its output
            y = y * self.first.last.mean(1, keepdim=True).sigmoid()
        return self.second(y)


RAN: list[nn.Module] = []
"""The hidden layers that ran; what a trial run leaves on a model itself is put back."""


class Hidden(nn.Module):
    """A residual hidden layer that counts its runs and leaves its input behind."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.last = nn.Linear(8, 32), nn.Linear(32, 8), None

    def forward(self, x: Tensor) -> Tensor:
        RAN.append(self)
        self.last = x
        return x + self.down(torch.relu(self.up(x)))


@pytest.mark.parametrize("remembers", [False, True])
def test_effects_are_those_of_whole_runs_whatever_is_reused(remembers, monkeypatch):
    torch.manual_seed(0)
    model = Counted(remembers=remembers).eval()
    calls = [Example((torch.randn(1, 10, 8),)) for _ in range(3)]
    grouping = find_groups(model, calls[0])
    configs = {g.name: GateConfig(prune_ratio=0.5, align=4) for g in grouping.groups}
    gate_model(model, calls[0], grouping.groups, configs)
    calibrate(model, calls)
    parts = distribute.parts_of(attached(model).plans)
    assert len(parts) == 2
    RAN.clear()
    found = distribute._effects(model, parts, calls)
    reused = RAN.count(model.first)
    monkeypatch.setattr(distribute, "_repeats", lambda *_: False)
    RAN.clear()
    wanted = distribute._effects(model, parts, calls)
    assert found == [[(kept, pytest.approx(effect)) for kept, effect in part] for part in wanted]
    assert (reused < RAN.count(model.first)) != remembers


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_saves_as_much_for_less(seed):
    chance = random.Random(seed)
    options = []
    for _ in range(3):
        saved = sorted(chance.randint(1, 50) for _ in range(3))
        effects = sorted(chance.random() for _ in range(3))
        choices = [Choice(4, 0, 0.0)]
        choices += [Choice(3 - i, *pair) for i, pair in enumerate(zip(saved, effects, strict=True))]
        options.append(choices)
    budget = chance.random() * sum(choices[-1].saved for choices in options)
    chosen = spread(options, lambda chosen: sum(c.saved for c in chosen) >= budget)
    reached = sum(choice.saved for choice in chosen)
    effect = sum(choice.effect for choice in chosen)
    assert reached >= budget
    for other in itertools.product(*options):
        if sum(choice.saved for choice in other) >= reached:
            assert sum(choice.effect for choice in other) >= effect - 1e-12


def test_the_example_of_spreading_is_true():
    assert doctest.testmod(distribute).failed == 0
