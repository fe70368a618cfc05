"""Gates follow new plans, and keep what they know."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dynprune.gate import (
    GateConfig,
    attached,
    fold_means,
    gate_model,
    gates,
    inject,
    remove,
    set_execution,
)
from dynprune.gate.settle import settle
from dynprune.graph import find_groups
from dynprune.host.outputs import tensors_of
from dynprune.planning.calibrate import calibrate
from tests.zoo import ZOO


def made():
    model, example = ZOO["segformer"].made()
    groups = find_groups(model, example).groups
    gate_model(model, example, groups, {g.name: GateConfig(align=4) for g in groups})
    calibrate(model, [example.batched(1, seed=seed) for seed in range(5)])
    return model.eval(), example


@torch.no_grad()
def output(model, example) -> Tensor:
    return tensors_of(example.run(model))[0]


def changed(plans, kind: str):
    """Return plans with other ratios and roundings, one group refused, or one masked."""
    if kind == "ratio":
        configs = [replace(p.config, prune_ratio=0.75, align=8) for p in plans]
        return [replace(p, config=c) for p, c in zip(plans, configs, strict=True)]
    first = next(p for p in plans if p.mode == "compact" and p.group.kind == "ffn")
    other = first.refused("on trial") if kind == "refused" else replace(first, mode="masked")
    return [other if p is first else p for p in plans]


@pytest.mark.parametrize("execution", ["compact", "masked"])
@pytest.mark.parametrize("kind", ["ratio", "refused", "masked"])
def test_a_settled_model_is_one_gated_by_those_plans_with_the_same_state(kind, execution):
    model, example = made()
    plans = changed(attached(model).plans, kind)
    state = {name: gate.state_dict() for name, gate in gates(model).items()}
    settle(model, plans)
    assert attached(model).plans == tuple(plans)
    set_execution(model, execution)
    found = output(model, example)
    remove(model)
    inject(model, plans)
    for name, gate in gates(model).items():
        gate.load_state_dict(state[name])
    fold_means(model)
    set_execution(model, execution)
    torch.testing.assert_close(found, output(model, example), rtol=1e-4, atol=1e-5)


def test_settings_alone_leave_every_layer_in_its_place():
    model, _ = made()
    before = list(model.modules())
    settle(model, changed(attached(model).plans, "ratio"))
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))
    assert {gate.prune_ratio for gate in gates(model).values()} == {0.75}


def test_a_refused_group_gets_its_own_layers_back():
    model, example = made()
    plans = changed(attached(model).plans, "refused")
    name = next(p.group.name for p in plans if p.reason == "on trial")
    settle(model, plans)
    assert name not in gates(model)
    remove(model)
    dense, _ = ZOO["segformer"].made()
    torch.testing.assert_close(output(model, example), output(dense.eval(), example))
