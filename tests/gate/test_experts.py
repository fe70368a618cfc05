"""Experts compute, for every instance, what a model fixed to its expert's neurons computes."""

import copy

import pytest
import torch
from torch.utils import _pytree as pytree

from dynprune.errors import GateError, UsageError
from dynprune.example import Example
from dynprune.gate.experts import ExpertLinear
from dynprune.gate.fixed import KeptNeurons, fix_groups
from dynprune.gate.inject import remove
from dynprune.gate.route import Experts, put_experts, routers, why_not_experts
from tests.gate.zoo_laws import error, gated_animal, run

ROUNDING = 1e-4  # sums in another order, layer after layer, in float32


def planned(name):
    """Return an ungated animal with its plans."""
    model, example, _, record = gated_animal(name, order="fixed")
    remove(model)
    return model, example, record.plans


def random_experts(model, plans, count=3, seed=0):
    """Draw sets and centres for every hidden layer that can have experts."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for plan in plans:
        if why_not_experts(model, plan) is None:
            group = plan.group
            width = model.get_submodule(group.producers[0].module).weight.shape[1]
            order = torch.rand(count, group.neurons, generator=random)
            index = order.topk(group.neurons // 2).indices.sort(1).values
            centres = torch.randn(count, width, generator=random)
            found[group.name] = Experts(index, centres, torch.ones(width), {})
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
