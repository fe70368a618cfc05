"""Experts compute, for every instance, what a model fixed to its expert's neurons computes."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from dynprune.errors import GateError, UsageError
from dynprune.example import Example
from dynprune.gate.call import recording
from dynprune.gate.expert_record import experts_again, record_of_experts, without_experts
from dynprune.gate.expert_rows import shared_rows, spread_rows, stacks
from dynprune.gate.experts import ExpertLinear
from dynprune.gate.fixed import KeptNeurons, fix_groups
from dynprune.gate.inject import remove
from dynprune.gate.route import Experts, put_experts, routers, why_not_experts
from dynprune.rewrite import Rewrite
from tests.gate.zoo_laws import error, gated_animal, run

ROUNDING = 1e-4  # sums in another order, layer after layer, in float32


def planned(name):
    """Return an ungated animal with its plans."""
    model, example, _, record = gated_animal(name, order="fixed")
    remove(model)
    return model, example, record.plans


def random_experts(model, plans, count=3, seed=0, grain="instance"):
    """Draw sets and centres for every hidden layer that can have experts."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for plan in plans:
        if why_not_experts(model, plan, grain) is None:
            group = plan.group
            first = model.get_submodule(group.producers[0].module)
            width = first.weight.shape[int(isinstance(first, nn.Linear | nn.Conv2d))]
            order = torch.rand(count, group.neurons, generator=random)
            index = order.topk(group.neurons // 2).indices.sort(1).values
            centres = torch.randn(count, width, generator=random)
            found[group.name] = Experts(index, centres, torch.ones(width), {}, grain)
    return found


@pytest.mark.parametrize("name", ["segformer", "vit", "mlp_mixer", "conv1x1_convnext"])
def test_one_expert_is_a_fixed_model(name):
    model, example, plans = planned(name)
    twin, _, _ = planned(name)
    experts = random_experts(model, plans, count=1)
    assert experts
    put_experts(model, plans, experts)
    fix_groups(twin, plans, {n: KeptNeurons(e.index[0]) for n, e in experts.items()})
    call = example.batched(3, seed=5)
    assert error(run(model, call), run(twin, call)) < ROUNDING


def only(row, call):
    """Return the call with one of its instances."""
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda x: x[row : row + 1], (call.args, dict(call.kwargs))
    )
    return Example(args, kwargs)


@pytest.mark.parametrize("name", ["segformer", "vit", "dinov2_swiglu"])
def test_every_instance_of_a_batch_gets_the_expert_that_it_gets_alone(name):
    model, example, plans = planned(name)
    put_experts(model, plans, random_experts(model, plans))
    batch = example.batched(4, seed=5)
    together = run(model, batch)
    alone = [run(model, only(row, batch)) for row in range(4)]
    for position, whole in enumerate(together):
        parts = torch.cat([outputs[position] for outputs in alone])
        assert error([whole], [parts]) < ROUNDING


def test_the_router_takes_the_nearest_centre():
    model, _, plans = planned("vit")
    experts = random_experts(model, plans, count=5)
    name, own = next(iter(experts.items()))
    scale = torch.rand(own.centres.shape[1]) + 0.5
    put_experts(model, plans, {name: Experts(own.index, own.centres, scale, {})})
    layer = model.get_submodule(
        next(p for p in plans if p.group.name == name).group.producers[0].module
    )
    tokens = torch.randn(50, 7, own.centres.shape[1])
    distance = torch.cdist(tokens.mean(1) * scale, own.centres * scale)
    chosen = layer.router.scores(layer.router.pooled(tokens)).argmax(1)
    assert torch.equal(chosen, distance.argmin(1))
    assert len(chosen.unique()) > 1


def test_dense_layers_come_back_with_their_own_bits():
    model, example, plans = planned("segformer")
    before = run(model, example)
    put_back = put_experts(model, plans, random_experts(model, plans))
    assert any(isinstance(m, ExpertLinear) for m in model.modules())
    put_back()
    assert not any(isinstance(m, ExpertLinear) for m in model.modules())
    assert error(run(model, example), before) == 0.0


@pytest.mark.parametrize("batch", [1, 3])
def test_experts_compile_without_a_break(batch):
    model, example, plans = planned("vit")
    put_experts(model, plans, random_experts(model, plans))
    call = example.batched(batch, seed=2)
    wanted = run(model, call)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        found = compiled(*call.args, **call.kwargs)
    first = next(t for t in found.values() if t.is_floating_point())
    assert error([first.double()], wanted[:1]) < ROUNDING


def test_weights_of_another_form_are_refused():
    with pytest.raises(UsageError, match=r"\(M, out, in\)"):
        ExpertLinear(torch.randn(3, 4), None, members=None)


def test_heads_and_parts_of_inputs_have_no_experts():
    model, _, plans = planned("swin")
    reasons = {why_not_experts(model, plan) for plan in plans if plan.group.heads}
    assert reasons == {"only hidden layers have experts; the neurons of heads are fixed"}
    plan = next(plan for plan in plans if plan.group.heads)
    with pytest.raises(GateError, match="cannot have experts"):
        put_experts(
            model, plans, {plan.group.name: Experts(torch.zeros(1, 1), *[torch.ones(1)] * 2, {})}
        )


def test_a_causal_model_has_no_experts_since_their_router_would_see_the_future():
    model, _, plans = planned("gpt2")
    reasons = {why_not_experts(model, plan) for plan in plans if plan.group.kind == "ffn"}
    assert reasons == {"its router would see tokens of the future"}


def test_nothing_of_a_call_is_left_in_the_model_or_its_copies():
    model, example, plans = planned("vit")
    put_experts(model, plans, random_experts(model, plans))
    before = run(model, example)
    twin = copy.deepcopy(model)
    own, others = (next(iter(routers(m).values())).members.scope for m in (model, twin))
    assert own is not others
    assert own.newest() is None
    assert error(run(twin, example), before) == 0.0


@pytest.mark.parametrize("name", ["vit", "gpt2", "dinov2_swiglu"])
def test_every_token_gets_what_a_model_fixed_to_its_expert_gives_it(name):
    model, example, plans = planned(name)
    experts = random_experts(model, plans, grain="token")
    only_first = dict([next(iter(experts.items()))])
    twins = []
    for m in range(3):
        twin, _, _ = planned(name)
        fix_groups(twin, plans, {n: KeptNeurons(e.index[m]) for n, e in only_first.items()})
        twins.append(twin)
    put_experts(model, plans, only_first)
    plan = next(plan for plan in plans if plan.group.name in only_first)
    consumer = plan.group.consumers[0].module
    call = example.batched(2, seed=5)
    with recording() as seen:
        found = at(model, consumer, call)
    chosen = seen[plan.group.name][0].selection.index.flatten()
    assert len(chosen.unique()) > 1
    wanted = torch.stack([at(twin, consumer, call) for twin in twins])
    wanted = wanted[chosen, torch.arange(len(chosen))]
    assert error([found], [wanted]) < ROUNDING


def at(model, name, call):
    """What a layer gives in a call, one token a row."""
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda *args: seen.append(args[2]))
    run(model, call)
    handle.remove()
    return seen[0].flatten(0, -2).double()


def test_tokens_of_a_causal_model_do_not_see_the_future_by_their_experts():
    model, example, plans = planned("gpt2")
    put_experts(model, plans, random_experts(model, plans, grain="token"))
    call = example.batched(2, seed=5)
    (ids,) = call.tensors[:1]
    later = ids.clone()
    later[:, -1] = (later[:, -1] + 1) % 7
    with torch.no_grad():
        found, wanted = (model(x).logits for x in (later, ids))
    assert error([found[:, :-1]], [wanted[:, :-1]]) < ROUNDING
    assert not torch.equal(found[:, -1], wanted[:, -1])


def test_the_task_teaches_the_router_and_its_factor_is_one():
    model, example, plans = planned("vit")
    put_experts(model, plans, random_experts(model, plans, grain="token"))
    still = run(model, example)
    model.train()
    output = model(*example.args, **example.kwargs)
    loss = next(t for t in output.values() if t.is_floating_point())
    assert error([loss.detach().double()], still[:1]) < ROUNDING  # it has no dropout
    loss.square().sum().backward()
    for router in routers(model).values():
        assert router.weight.grad.abs().max() > 0
        assert router.bias.grad.sum().abs() < 1e-3 * router.bias.grad.abs().max() + 1e-6


def test_two_groups_of_one_layer_do_not_both_have_experts():
    model, _, plans = planned("vit")
    experts = random_experts(model, plans)
    (first, own), *_ = experts.items()
    plan = next(plan for plan in plans if plan.group.name == first)
    other = replace(plan, group=replace(plan.group, name="other"))
    with pytest.raises(GateError, match="cannot both have experts"):
        put_experts(model, [plan, other], {first: own, "other": own})


@pytest.mark.parametrize("name", ["segformer", "vit"])
def test_records_put_the_same_experts_into_a_blank_model(name):
    model, example, plans = planned(name)
    put_experts(model, plans, random_experts(model, plans))
    record = Rewrite.from_json(json.loads(json.dumps(record_of_experts(model).to_json())))
    twin, _, _ = planned(name)
    experts_again(twin, [record])
    twin.load_state_dict(model.state_dict())
    assert error(run(twin, example), run(model, example)) == 0.0


def test_a_record_that_does_not_fit_is_refused():
    model, _, plans = planned("vit")
    put_experts(model, plans, random_experts(model, plans))
    record = record_of_experts(model)
    group = {**record.details["groups"][0], "sets": [[0, 10**6]]}
    twin, _, _ = planned("vit")
    with pytest.raises(ValueError, match="beyond"):
        experts_again(twin, [replace(record, details={"groups": [group]})])
    with pytest.raises(ValueError, match="grain"):
        experts_again(
            twin, [replace(record, details={"groups": [{**group, "sets": [[0]], "grain": "x"}]})]
        )


def test_without_experts_a_model_has_the_layers_and_sizes_of_the_dense_one():
    model, example, plans = planned("segformer")
    twin, _, _ = planned("segformer")
    put_experts(model, plans, random_experts(model, plans, count=1))
    put = run(model, example)
    without_experts(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in twin.modules()]
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in twin.named_parameters()
    }
    assert error(run(model, example), put) < ROUNDING  # neurons of no expert are zero


def test_rows_that_experts_share_are_kept_once_until_training_tells_them_apart():
    model, example, plans = planned("segformer")
    experts = random_experts(model, plans)
    put_experts(model, plans, experts)
    rows = shared_rows(model)
    assert rows.keys() == stacks(model).keys()
    plan = next(plan for plan in plans if plan.group.name in experts)
    producer = plan.group.producers[0].module
    union = experts[plan.group.name].index.unique()
    assert len(rows[f"{producer}.weight"]) == len(union)
    before = run(model, example)
    for name in rows:
        model.get_parameter(name).data.normal_()
    spread_rows(model, rows)
    assert error(run(model, example), before) == 0.0
    index = experts[plan.group.name].index
    shared = next(int(n) for n in index[0] if n in index[1])
    weight = model.get_parameter(f"{producer}.weight")
    weight.data[0, (index[0] == shared).nonzero()] += 1.0
    assert f"{producer}.weight" not in shared_rows(model)
