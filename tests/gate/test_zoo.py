"""The laws of gating on every model of the zoo."""

from collections import Counter

import pytest
import torch

from dynprune.gate import (
    GateConfig,
    gates,
    plan_groups,
    remove,
    set_execution,
    set_prune_ratio,
    set_sparsity_progress,
)
from dynprune.gate.linear import DynamicLinear
from dynprune.graph import find_groups
from dynprune.models import ModelSource, Provenance, storage
from dynprune.rewrite import rewrite, undo
from tests.gate.zoo_laws import error, forced, gated_animal, run
from tests.zoo import ZOO

# Compact sums the kept products alone, in another order: a few rounding errors of float32.
ROUNDING = 1e-5


@pytest.mark.parametrize("name", ZOO)
def test_gating_obeys_its_laws(name, tmp_path):
    """Insertion, equality of the executions at batch 3, effect, storage, and the way back."""
    fresh, _ = ZOO[name].made()
    model, example, grouping, record = gated_animal(name)
    wanted = [plan for plan in record.plans if plan.group.reason is None]
    assert len(wanted) == len(grouping.candidates)
    if not wanted:
        assert not gates(model)
        return
    for plan in wanted:
        mode = "compact"
        if name == "dpt" and plan.group.producers[0].module.startswith("neck"):
            mode = "scatter"  # its readout is reshaped to a width that the code computes
        assert plan.mode == mode, (plan.group.name, plan.reason)
        assert (plan.reason is None) == (mode == "compact")

    call = example.batched(3, seed=5)
    set_prune_ratio(model, 0.0)
    identity = run(model, call)
    set_sparsity_progress(model, 1.0)
    with forced(model, 3):
        set_execution(model, "masked")
        masked = run(model, call)
        set_execution(model, "compact")
        compact = run(model, call)
    assert error(compact, masked) < ROUNDING

    loaded = stored_and_loaded(name, model, tmp_path)
    assert error(run(loaded, call), run(model, call)) == 0.0
    for gated in (model, loaded):
        remove(gated)
        assert_same_bits(gated, fresh)
    dense = run(model, call)
    assert error(identity, dense) < ROUNDING
    assert error(compact, dense) > 1e-3
    undo(loaded)
    assert_same_bits(loaded, ZOO[name].published())


def stored_and_loaded(name, model, directory):
    """Write a gated animal and read it again, with no tracing and no recipe."""
    animal = ZOO[name]
    records = rewrite(animal.published(), animal.example(), animal.rewrites)
    source = ModelSource("factory", factory=f"tests.zoo:{name}")
    known = Provenance(source, name, (1,), rewrites=tuple(records))
    storage.save(model, directory / name, provenance=known)
    return storage.load(directory / name, factory=animal.build)


def assert_same_bits(model, wanted):
    """The same modules under the same names, with the same values in the usual memory layout."""
    found = [(name, type(m).__name__) for name, m in model.named_modules()]
    assert found == [(name, type(m).__name__) for name, m in wanted.named_modules()]
    before, after = wanted.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(t.is_contiguous() for t in after.values())


@pytest.mark.parametrize("name", ["vit", "pvt_v2", "segformer", "llama"])
def test_a_wrong_index_set_does_not_pass_for_the_right_one(name):
    """The negative control of the law above: shifted indices give another function."""
    model, example, _, _ = gated_animal(name)
    call = example.batched(3, seed=5)
    with forced(model, 3):
        set_execution(model, "masked")
        masked = run(model, call)
        set_execution(model, "compact")
        consumer = next(
            m for m in model.modules() if isinstance(m, DynamicLinear) and m.reads and not m.gates
        )
        axis = 0 if consumer.layout == "transposed" else 1
        consumer.weight.data = consumer.weight.data.roll(1, dims=axis)
        assert error(run(model, call), masked) > 1e-3


def test_causal_groups_are_refused_unless_asked_for():
    model, example = ZOO["llama"].made()
    grouping = find_groups(model, example)
    configs = {group.name: GateConfig() for group in grouping.groups}
    plans = plan_groups(model, example, grouping.groups, configs)
    assert Counter(plan.mode for plan in plans) == {"refused": len(plans)}
    assert any("future" in (plan.reason or "") for plan in plans)
