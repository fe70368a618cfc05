"""One planning pass gives what its steps give one by one, and runs no input more than it must."""

import copy

import pytest
import torch
from torch import nn

from dynprune.errors import NoMatchError
from dynprune.example import Example
from dynprune.gate import GateConfig, attached, gates, inject, plan_groups
from dynprune.graph import find_groups
from dynprune.planning.calibrate import calibrate, start_from_weights
from dynprune.planning.session import Aims, gate_in_one_pass
from tests.zoo import ZOO


def made(name: str, **config):
    model, example = ZOO[name].made()
    calls = [example.batched(1, seed=seed) for seed in range(5)]
    grouping = find_groups(model, example)
    settings = GateConfig(prune_ratio=0.5, align=4, **config)
    return model.eval(), example, grouping, {g.name: settings for g in grouping.groups}, calls


def equal(model: nn.Module, other: nn.Module) -> bool:
    mine, others = model.state_dict(), other.state_dict()
    # Weights lie otherwise in memory where gates stood before, so that sums round otherwise.
    return mine.keys() == others.keys() and all(
        torch.allclose(mine[k], others[k], rtol=1e-4, atol=1e-5) for k in mine
    )


@pytest.mark.parametrize("name", ["segformer", "vit", "torch_encoder"])
@pytest.mark.parametrize("spreads", [False, True])
def test_one_pass_is_its_steps_one_by_one(name, spreads):
    model, example, grouping, configs, calls = made(name)
    other = copy.deepcopy(model)
    aims = Aims(spreads=spreads)
    gate_in_one_pass(model, example, grouping, configs, calls, aims, seed=7)
    plans = attached(model).plans
    if spreads:
        assert len({plan.config.prune_ratio for plan in plans if plan.mode != "refused"}) > 1
    chosen = {p.group.name: p.config for p in plans}
    again = plan_groups(other, example, grouping.groups, chosen)
    assert [(p.mode, p.reason, p.heads) for p in again] == [
        (p.mode, p.reason, p.heads) for p in plans
    ]
    inject(other, again, seed=7)
    start_from_weights(other)
    calibrate(other, calls)
    assert equal(model, other)
    with torch.no_grad():
        for a, b in zip(*(gates(m).values() for m in (model, other)), strict=True):
            assert (a.kept, a.verified, a.config) == (b.kept, b.verified, b.config)


def test_an_input_runs_once_to_be_measured():
    model, example, grouping, configs, calls = made("segformer")
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append([*args, *kwargs.values()]), with_kwargs=True
    )
    gate_in_one_pass(model, example, grouping, configs, calls, Aims())
    for call in calls:
        picture = call.tensors[0]
        assert sum(any(given is picture for given in run) for run in seen) == 1


def test_gates_that_start_fresh_know_nothing_of_what_chose_their_ratios():
    model, example, grouping, configs, calls = made("vit")
    gate_in_one_pass(model, example, grouping, configs, calls, Aims(spreads=True, informed=False))
    found = gates(model).values()
    assert len({gate.prune_ratio for gate in found}) > 1
    assert all(gate.mean is None or not gate.mean.any() for gate in found)
    assert all(not gate.predictor.up.bias.any() for gate in found)


def test_without_inputs_the_shares_stay_and_that_is_said(caplog):
    model, example, grouping, configs, _ = made("vit")
    gate_in_one_pass(model, example, grouping, configs, [], Aims(spreads=True, informed=False))
    assert {gate.prune_ratio for gate in gates(model).values()} == {0.5}
    assert "every group skips the same share" in caplog.text


def test_a_model_without_any_group_that_can_be_gated_is_named():
    model = nn.Sequential(nn.Linear(4, 4))
    example = Example((torch.randn(2, 4),))
    grouping = find_groups(model, example)
    with pytest.raises(NoMatchError, match="No neuron group of a small one can be gated"):
        gate_in_one_pass(model, example, grouping, {}, None, Aims(), name="a small one")
