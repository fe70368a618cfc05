"""Gates that cost more than they save stay out, and the others round as is fastest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.gate import (
    GateConfig,
    GroupPlan,
    NeuronGate,
    attached,
    gates,
    inject,
    plan_groups,
)
from dynprune.graph import find_groups
from dynprune.measure.breakeven import TimedModule, time_modules
from dynprune.models import LoadedModel, source_of
from dynprune.pipeline import apply_recipe
from dynprune.planning import choose
from dynprune.planning.choose import MARGIN, SavedTime, choose_by_latency, refuse_whole
from dynprune.planning.distribute import parts_of, usual_size, width_of
from dynprune.recipe import load_recipe
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


def saved_time(monkeypatch: pytest.MonkeyPatch) -> tuple[SavedTime, list[GroupPlan]]:
    """Time a model whose attentions gain nothing, and whose hidden layers what they skip."""
    model, example, plans = planned()
    slow = {"0.25": 1.5, "0.5": 1.2, "0.75": 1.1, "0.9": 1.05}
    fast = {"0.25": 0.8, "0.5": 0.5, "0.75": 0.3, "0.9": 0.2}
    monkeypatch.setattr(
        choose, "time_modules", clock(lambda name: slow if "attention" in name else fast)
    )
    return SavedTime(model, example, plans), plans


def test_time_that_a_part_saves_is_measured_and_interpolated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    savings, plans = saved_time(monkeypatch)
    hidden = next([plan] for plan in plans if plan.group.kind == "ffn")
    width = width_of(hidden[0])
    found = [savings.of(hidden, kept) for kept in (width, width * 3 // 4, width // 2, width // 4)]
    assert found == pytest.approx([0.0, 2.0, 5.0, 7.0])
    assert savings.of(hidden, width * 5 // 8) == pytest.approx(3.5)
    heads = next(part for part in parts_of(plans) if part[0].heads)
    assert savings.of(heads, width_of(heads[0]) // 2) == pytest.approx(-2.0)


def test_time_is_enough_where_it_is_what_the_plans_own_ratios_save(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    savings, plans = saved_time(monkeypatch)
    usual = [(part, usual_size(part[0])) for part in parts_of(plans)]
    assert savings.is_enough(usual)
    hidden = [part for part in parts_of(plans) if not part[0].heads]
    without_attention = [
        (part, usual_size(part[0]) if part in hidden else width_of(part[0]))
        for part in parts_of(plans)
    ]
    assert savings.is_enough(without_attention)  # attention costs time: less will do elsewhere
    assert not savings.is_enough([(part, width_of(part[0])) for part in parts_of(plans)])


def test_a_group_that_keeps_every_neuron_has_no_gate() -> None:
    _, _, plans = planned()
    whole = replace(plans[0], config=replace(plans[0].config, prune_ratio=0.0))
    first, *others = refuse_whole([whole, *plans[1:]])
    assert first.mode == "refused"
    assert "others save this time" in (first.reason or "")
    assert others == plans[1:]


def test_a_recipe_spreads_time_over_what_gains_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention may be gated at the recipe's ratio, but all that is saved is hidden layers'."""
    model, example = ZOO["vit"].made()
    recipe = load_recipe(
        "any",
        [
            "sparsity.final=0.5",
            "sparsity.distribution=sensitivity",
            "apply.target=latency",
            "apply.gate.align=4",
        ],
    )
    forms = {"4": 0.9, "0.25": 1.0, "0.5": 1.0, "0.75": 1.0, "0.9": 1.0}
    hidden = {"4": 0.5, "0.25": 0.8, "0.5": 0.5, "0.75": 0.4, "0.9": 0.3}
    monkeypatch.setattr(
        choose, "time_modules", clock(lambda name: forms if "attention" in name else hidden)
    )
    loaded = LoadedModel(model, example, source_of(model), (), "vit")
    calls = [example.batched(1, seed=seed) for seed in range(2)]
    plans = attached(apply_recipe(loaded, recipe, calibration=calls)).plans
    assert {plan.mode for plan in plans if plan.group.kind == "ffn"} == {"compact"}
    reasons = {plan.reason for plan in plans if plan.heads or plan.group.kind != "ffn"}
    assert reasons == {"others save this time at less cost to the output"}
