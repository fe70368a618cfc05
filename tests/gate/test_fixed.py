"""Fixed groups: narrow plain layers compute what their gates computed, and load from a record."""

import copy
import json

import pytest
import torch
from torch import nn

from dynprune.errors import GateError, UsageError
from dynprune.example import Example
from dynprune.gate import GateConfig, fold_means, gates, is_gated, plan_groups
from dynprune.gate.fixed import KeptNeurons, fix_gates, fix_groups, only_fixable
from dynprune.gate.inject import inject, remove
from dynprune.graph import find_groups
from dynprune.rewrite import Rewrite, reapply
from tests.gate.zoo_laws import error, gated_animal, run
from tests.zoo import ZOO

# Sums of fewer products in another order, layer after layer, in float32.
ROUNDING = 1e-4


def fixable(name, ratio=0.5):
    """Return a gated animal all of whose gates can be fixed, with random orders and means."""
    model, example, _, record = gated_animal(name, prune_ratio=ratio, order="fixed")
    remove(model)
    plans = only_fixable(model, record.plans)
    inject(model, plans)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for gate in gates(model).values():
            gate.prior.copy_(torch.rand(gate.neurons, generator=random))
            if gate.mean is not None:
                gate.mean.copy_(torch.randn(gate.neurons, generator=random))
    fold_means(model)
    return model, example, plans


@pytest.mark.parametrize("name", ZOO)
def test_a_fixed_model_computes_what_its_gates_computed_at_every_batch_size(name):
    model, example, _ = fixable(name)
    if not gates(model):
        pytest.skip("nothing of this model can be narrowed for good")
    call = example.batched(3, seed=5)
    masked = run(model, call)
    kinds = {n: type(m).__name__ for n, m in ZOO[name].made()[0].named_modules()}
    fix_gates(model, example)
    assert not is_gated(model)
    assert {n: type(m).__name__ for n, m in model.named_modules()} == kinds
    assert error(run(model, call), masked) < ROUNDING


@pytest.mark.parametrize("name", ["segformer", "vit", "gpt2", "packed_encoder", "mobilevit"])
def test_a_record_builds_the_narrow_layers_again_for_the_weights_to_be_loaded(name):
    model, example, _ = fixable(name)
    record, _ = fix_gates(model, example)
    fresh, _ = ZOO[name].made()
    reapply(fresh, [Rewrite.from_json(json.loads(json.dumps(record.to_json())))])
    fresh.load_state_dict(model.state_dict())
    assert error(run(fresh, example), run(model, example)) == 0.0


@pytest.mark.parametrize("name", ["segformer", "vit", "packed_encoder"])
def test_the_way_back_gives_every_layer_its_own_bits(name):
    model, example, plans = fixable(name)
    remove(model)
    before = copy.deepcopy(model)
    kept = {
        plan.group.name: KeptNeurons(halves(plan.group), torch.ones(plan.group.neurons))
        for plan in plans
        if plan.mode == "compact"
    }
    _, put_back = fix_groups(model, plans, kept)
    assert str(model) != str(before)
    put_back()
    assert str(model) == str(before)
    wanted = before.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())
    assert error(run(model, example), run(before, example)) == 0.0


def halves(group):
    """Keep every other neuron."""
    return torch.arange(0, group.neurons, 2)


def test_a_consumer_without_a_bias_gets_one_for_the_means():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()
    x = torch.randn(5, 4)
    plan = only_plan(model, x)
    mean = torch.arange(8.0)
    index = torch.tensor([0, 2, 3, 7])
    hidden = torch.relu(model[0](x))
    skipped = torch.tensor([1, 4, 5, 6])
    hidden[:, skipped] = mean[skipped]
    expected = hidden @ model[2].weight.t()
    record, _ = fix_groups(model, [plan], {"0": KeptNeurons(index, mean)})
    torch.testing.assert_close(model(x), expected)
    fresh = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()
    reapply(fresh, [record]).load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


def only_plan(model, x):
    """Plan the only group of a model."""
    example = Example((x,))
    found = find_groups(model, example).groups
    (plan,) = plan_groups(model, example, found, {group.name: GateConfig() for group in found})
    return plan


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([3, 1], "ascending"),
        ([], "one neuron at least"),
        ([1, 8], "beyond its 8"),
    ],
)
def test_a_set_that_does_not_fit_is_refused_and_the_model_is_untouched(index, message):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    plan = only_plan(model, torch.randn(5, 4))
    before = str(model)
    with pytest.raises(UsageError, match=message):
        fix_groups(model, [plan], {"0": KeptNeurons(torch.tensor(index))})
    assert str(model) == before


def test_every_head_keeps_equally_many():
    model, _, plans = fixable("vit")
    remove(model)
    plan = next(plan for plan in plans if plan.group.heads)
    index = torch.arange(plan.group.neurons // plan.group.heads)
    with pytest.raises(UsageError, match="equally many of every head"):
        fix_groups(model, plans, {plan.group.name: KeptNeurons(index)})


def test_a_layer_that_shares_its_weight_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Linear(3, 8)).eval()
    plan = only_plan(nn.Sequential(*model[:3]), torch.randn(5, 4))
    model[2].weight = nn.Parameter(model[3].weight.detach().t().contiguous())
    model[3].weight = model[2].weight
    with pytest.raises(GateError, match="shares its weight"):
        fix_groups(model, [plan], {"0": KeptNeurons(torch.tensor([0, 1]))})


def test_a_damaged_record_is_refused():
    model, example, _ = fixable("vit")
    record, _ = fix_gates(model, example)
    for damage in ({"size": 10**6}, {"size": 0}, {"module": "nothing"}, {"side": "up"}):
        details = json.loads(json.dumps(record.details))
        details["layers"][0] |= damage
        with pytest.raises(UsageError, match="does not fit"):
            reapply(ZOO["vit"].made()[0], [Rewrite(record.name, "", details, None)])
    details = json.loads(json.dumps(record.details))
    details["heads"][0]["value"] = 10**9
    with pytest.raises(UsageError, match="does not fit"):
        reapply(ZOO["vit"].made()[0], [Rewrite(record.name, "", details, None)])
