"""Verification alone, were the graph's word not taken: nothing wrong is ever called compact."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.gate import (
    GateConfig,
    gate_model,
    gates,
    plan_groups,
    remove,
    set_execution,
    set_prune_ratio,
    set_sparsity_progress,
)
from dynprune.graph import NeuronGroup, find_groups
from dynprune.host.outputs import close
from tests.gate.zoo_laws import error, forced, run
from tests.graph.adversaries import REFUSED
from tests.zoo import ZOO

ROUNDING = 1e-5  # float32 sums in another order
SETTINGS = GateConfig(align=1)


def example() -> Example:
    torch.manual_seed(0)
    return Example((torch.randn(2, 6, 8),))


def believed(model: nn.Module, call: Example) -> list[NeuronGroup]:
    """Return a model's groups as if the graph had seen nothing wrong with them."""
    return [replace(group, reason=None) for group in find_groups(model, call).groups]


@pytest.mark.parametrize("name", REFUSED)
def test_an_adversary_that_the_graph_let_pass_is_caught_or_harmless(name):
    torch.manual_seed(1)
    model, call = REFUSED[name][0]().eval(), example()
    wide = call.batched(3, seed=5)
    dense, groups = run(model, wide), believed(model, call)
    gate_model(model, call, groups, {group.name: SETTINGS for group in groups})
    set_prune_ratio(model, 0.0)
    assert error(run(model, wide), dense) < ROUNDING
    if gates(model):
        set_sparsity_progress(model, 1.0)
        with forced(model, 3):
            set_execution(model, "masked")
            masked = run(model, wide)
            set_execution(model, "compact")
            assert error(run(model, wide), masked) < ROUNDING
    remove(model)
    assert error(run(model, wide), dense) == 0.0


#: Adversaries in which skipped neurons are seen, so that no mode at all would be right.
MIXED = [
    "a LayerNorm between",
    "an RMSNorm between",
    "a GroupNorm between",
    "a softmax over channels",
    "an L2 norm over channels",
    "an own RMS norm",
    "a running sum",
    "an interleaved reshape",
    "the hidden tensor returned",
    "a weight read outside",
    "a layer that reads itself",
    "a linear that does more",
    "a computed weight",
    "a wide convolution",
    "packed projections",
    "linear attention",
]


@pytest.mark.parametrize("name", MIXED)
def test_where_skipped_neurons_are_seen_the_group_is_refused_without_the_graph(name):
    model, call = REFUSED[name][0]().eval(), example()
    groups = believed(model, call)
    plans = plan_groups(model, call, groups, {group.name: SETTINGS for group in groups})
    assert {plan.mode for plan in plans if plan.group.kind != "v"} <= {"refused"}
    assert all(plan.reason for plan in plans if plan.mode == "refused")


def sabotaged(group: NeuronGroup, side: str, shift: int) -> NeuronGroup:
    """Return a group whose layers on one side are said to hold its neurons elsewhere."""
    wrong = [replace(c, index=c.index.roll(shift, 0)) for c in getattr(group, side)]
    return replace(group, **{side: (*wrong,)})


@pytest.mark.parametrize("kind", ["ffn", "v"])
@pytest.mark.parametrize("shift", [1, 7, -3])
def test_a_wrong_index_set_is_refused(kind, shift):
    model, call = ZOO["vit"].made()
    groups = [
        sabotaged(group, "consumers", shift) if group.kind == kind else group
        for group in find_groups(model, call).groups
    ]
    plans = plan_groups(model, call, groups, {group.name: SETTINGS for group in groups})
    for plan in plans:
        wrong = plan.group.kind == kind
        assert (plan.mode == "refused") == wrong
        if wrong:
            assert plan.reason == "neurons that it skips still change the output"


def test_queries_that_are_kept_without_their_keys_compute_what_is_right():
    model, call = ZOO["vit"].made()
    dense = run(model, call)
    groups = [g for g in find_groups(model, call).groups if g.kind == "qk"]
    unmatched = [replace(group, producers=group.producers[:1]) for group in groups]
    gate_model(model, call, unmatched, {group.name: SETTINGS for group in groups})
    set_prune_ratio(model, 0.0)
    assert error(run(model, call), dense) < ROUNDING
    set_sparsity_progress(model, 1.0)
    with forced(model, call.batch):
        set_execution(model, "masked")
        masked = run(model, call)
        set_execution(model, "compact")
        assert error(run(model, call), masked) < ROUNDING


def test_a_wrong_number_of_heads_never_runs_compactly_and_wrong():
    """Each head must keep as many neurons: with a wrong count the code's view cuts across them."""
    model, call = ZOO["vit"].made()
    groups = [
        replace(group, heads=2 * group.heads) if group.heads else group
        for group in find_groups(model, call).groups
    ]
    dense = run(model, call.batched(3, seed=5))
    gate_model(model, call, groups, {group.name: SETTINGS for group in groups})
    wide = call.batched(3, seed=5)
    with forced(model, 3):
        set_execution(model, "masked")
        masked = run(model, wide)
        set_execution(model, "compact")
        assert error(run(model, wide), masked) < ROUNDING
    remove(model)
    assert error(run(model, wide), dense) == 0.0


def test_planning_leaves_the_model_as_it_was():
    model, call = ZOO["vit"].made()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = find_groups(model, call).groups
    plan_groups(model, call, groups, {group.name: SETTINGS for group in groups})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not gates(model)


def test_a_module_that_does_not_run_on_the_example_is_refused():
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x, skip=False):
            return x if skip else self.fc2(self.fc1(x).relu())

    model, call = Sometimes().eval(), example()
    groups = find_groups(model, call).groups
    idle = Example(call.args, {"skip": True})
    (plan,) = plan_groups(model, idle, groups, {group.name: SETTINGS for group in groups})
    assert plan.mode == "refused"
    assert "did not run" in plan.reason


def test_results_are_close_up_to_the_rounding_of_their_type():
    x = torch.randn(4, 5)
    assert close([x], [x + 1e-6])
    assert not close([x], [x + 1e-3])
    assert close([x.bfloat16()], [(x * 1.001).bfloat16()])
    assert not close([x], [x[:3]])
    assert not close([x], [x, x])
    assert not close([], [])
    assert not close([torch.tensor([1])], [torch.tensor([2])])
    assert not close([x * float("nan")], [x])
