"""Gates that cost more than they save stay out, and the others round as is fastest."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import nn

from dynprune import choose
from dynprune.choose import MARGIN, choose_by_latency
from dynprune.example import Example
from dynprune.gate import GateConfig, GroupPlan, NeuronGate, gates, inject, plan_groups
from dynprune.graph import find_groups
from dynprune.report.breakeven import TimedModule, time_modules
from tests.zoo import ZOO


def planned() -> tuple[nn.Module, Example, list[GroupPlan]]:
    model, example = ZOO["vit"].made()
    groups = find_groups(model, example).groups
    configs = {group.name: GateConfig(prune_ratio=0.5, align=4) for group in groups}
    return model, example, plan_groups(model, example, groups, configs)


def clock(gated_over_dense: Callable[[str], Mapping[str, float]]) -> Callable[..., object]:
    """Replace the clock: every module takes 10 ms dense, and this share of it in each form."""

    def timed(
        model: nn.Module,
        plans: Sequence[GroupPlan],
        example: Example,
        forms: Mapping[str, Callable[[NeuronGate], None]],
        repeats: int,
    ) -> list[TimedModule]:
        found = []
        for module in time_modules(model, plans, example, forms, 1):
            shares = gated_over_dense(module.module)
            times = {form: 10.0 * shares.get(form, 0.9) for form in forms}
            found.append(TimedModule(module.module, module.plans, 10.0, times, module.kept))
        return found

    return timed


def test_a_group_that_would_not_pay_is_refused_with_its_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, example, plans = planned()
    shares = {True: {}, False: {"4": 0.99, "8": 1.2, "16": MARGIN + 0.01, "32": 3.0}}
    monkeypatch.setattr(choose, "time_modules", clock(lambda name: shares["attention" not in name]))
    chosen = choose_by_latency(model, example, plans)
    for plan in chosen:
        if plan.group.kind == "ffn":
            assert plan.mode == "compact"
        else:
            assert plan.mode == "refused"
            assert "would not pay here" in (plan.reason or "")
            assert "9.80 ms gated and 10.00 ms dense" in (plan.reason or "")


def test_the_fastest_rounding_is_taken_and_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    model, example, plans = planned()
    monkeypatch.setattr(choose, "time_modules", clock(lambda _: {"16": 0.5}))
    chosen = choose_by_latency(model, example, plans)
    assert {plan.config.align for plan in chosen} == {16}
    assert {plan.mode for plan in chosen} == {"compact"}
    inject(model, chosen)
    hidden = [gate for gate in gates(model).values() if gate.kind == "ffn"]
    assert all(gate.kept % 16 == 0 for gate in hidden)
    with torch.no_grad():
        example.run(model)


def test_reasons_of_groups_that_were_refused_before_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model, example, plans = planned()
    before = [p.refused("because") if p.group.kind == "ffn" else p for p in plans]
    monkeypatch.setattr(choose, "time_modules", clock(lambda _: {}))
    chosen = choose_by_latency(model, example, before)
    for plan in chosen:
        is_hidden = plan.group.kind == "ffn"
        expected = ("refused", "because") if is_hidden else ("compact", None)
        assert (plan.mode, plan.reason) == expected


def test_every_module_with_groups_is_really_timed() -> None:
    model, example, plans = planned()
    timed = time_modules(model, plans, example, {"all": lambda g: g.set_prune_ratio(0.0)}, 2)
    assert {p.group.name for m in timed for p in m.plans} == {p.group.name for p in plans}
    for module in timed:
        assert module.dense_ms > 0
        assert module.gated_ms["all"] > 0
        assert module.kept == {"all": 1.0}
    assert not gates(model)
