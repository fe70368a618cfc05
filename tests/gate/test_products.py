"""Attention is compact within code that sees heads of full width, and only where that is right."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynprune.errors import GateError
from dynprune.example import Example
from dynprune.gate import gates, remove, set_execution, set_prune_ratio
from dynprune.measure.executed import count_executed
from tests.gate.zoo_laws import difference, error, forced, gate_all, run
from tests.plain_attention import DIM, HEADS, PRODUCTS, ROTATIONS, Fused, Parallel, Rotary

ROUNDING = 1e-5
TOKENS = 16  # as many as a head has channels: nothing but the order tells the two products apart

BUILDS = {
    **{f"rotary {name}": lambda name=name: Rotary(name) for name in ROTATIONS},
    **{f"product {name}": lambda name=name: Rotary("half-split", name) for name in PRODUCTS},
    **{
        f"{name}, {shared} queries a key": lambda name=name, shared=shared: Rotary(
            "half-split", name, shared
        )
        for name in ("grouped", "fused", "matmul")
        for shared in (2, HEADS)
    },
    **{
        f"one layer {order}": lambda order=order: Fused(order) for order in ("3hd", "h3d", "chunks")
    },
    "one layer with an MLP": Parallel,
}


def example(tokens=TOKENS, rows=2):
    generator = torch.Generator().manual_seed(1)
    return Example((torch.randn(rows, tokens, 64, generator=generator),))


def gated(build):
    torch.manual_seed(0)
    model = nn.Sequential(build()).eval()
    return model, gate_all(model, example())


@pytest.mark.parametrize("name", BUILDS)
def test_attention_of_every_form_is_compact_and_equals_masked_execution(name):
    model, record = gated(BUILDS[name])
    attention = [plan for plan in record.plans if plan.group.heads]
    assert {plan.group.kind for plan in attention} == {"qk", "v"}
    assert all(plan.mode == "compact" and plan.reason is None for plan in attention)
    assert difference(model, example(rows=3)) < ROUNDING
    assert difference(model, example(25, rows=3)) < ROUNDING  # another length than was proven


@pytest.mark.parametrize("name", BUILDS)
def test_the_products_of_attention_cost_half_where_half_is_kept(name):
    model, _ = gated(BUILDS[name])
    dense = remove(copy.deepcopy(model))
    heads, channels = 2 * HEADS, 2 * DIM  # of both instances; of queries and values
    products = heads * TOKENS * TOKENS * channels
    assert count_executed(dense, example()).by_module["0"] == products
    assert count_executed(model, example()).by_module["0"] == products // 2


@pytest.mark.parametrize("name", ["rotary half-split", "one layer 3hd", "product einsum"])
def test_an_exported_program_narrows_the_products_too(name):
    model, _ = gated(BUILDS[name])
    x = example().args[0]
    with forced(model, 2), torch.no_grad():
        wanted = model(x)
        program = torch.export.export(model, (x,), strict=False)
        assert error([program.module()(x)], [wanted]) < ROUNDING
    narrow = [
        n for n in program.graph.nodes if "gather" in str(n.target) and n.meta["val"].dim() == 4
    ]
    assert len(narrow) >= 3  # queries, keys, values


@pytest.mark.parametrize("name", ["rotary complex", "one layer 3hd", "product matmul"])
def test_a_compiled_model_gives_the_same_answers(name):
    model, _ = gated(BUILDS[name])
    x = example().args[0]
    torch._dynamo.reset()
    with torch.no_grad():
        wanted = model(x)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert error([compiled(x)], [wanted]) < ROUNDING


def test_a_head_of_which_one_pair_is_kept_is_not_spread_over_the_others():
    model, _ = gated(BUILDS["rotary by halves"])
    set_prune_ratio(model, 0.99)
    assert all(gate.kept == 1 for gate in gates(model).values())
    assert difference(model, example(rows=3)) < ROUNDING


def test_a_call_with_other_products_than_were_traced_is_refused():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.twice = Rotary("half-split"), False

        def forward(self, x):
            return self.inner(self.inner(x)) if self.twice else self.inner(x)

    class Inside(Rotary):
        twice = False

        def forward(self, x):
            if self.twice:
                x = x + F.scaled_dot_product_attention(x, x, x)
            return super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(Inside("half-split")).eval()
    gate_all(model, example())
    model(example().args[0])
    model[0].twice = True
    with pytest.raises(GateError, match="ran 2 products of attention in this call, and 1"):
        model(example().args[0])
    model[0].twice = False
    model(example().args[0])

    calls = nn.Sequential(Sometimes()).eval()
    gate_all(calls, example())
    calls[0].twice = True  # a call more of the host is a call like the first
    calls(example().args[0])


def test_an_interrupted_call_narrows_nothing_that_comes_after_it():
    class Interrupted(Rotary):
        stop = False

        def forward(self, x):
            if self.stop:
                raise KeyboardInterrupt
            return super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(Interrupted("half-split")).eval()
    gate_all(model, example())
    wanted = model(example().args[0])
    model[0].stop = True
    with pytest.raises(KeyboardInterrupt):
        model(example().args[0])
    model[0].stop = False
    x = torch.randn(2, HEADS, 5, DIM)
    scores = (x @ x.transpose(-1, -2) * DIM**-0.5).softmax(-1) @ x
    assert torch.allclose(F.scaled_dot_product_attention(x, x, x), scores, atol=1e-5)
    assert torch.equal(model(example().args[0]), wanted)
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_copy_and_the_way_back_leave_no_hook_behind():
    model, _ = gated(BUILDS["rotary half-split"])
    twin = copy.deepcopy(model)
    for one in (model, twin):
        set_execution(one, "compact")
    x = example().args[0]
    assert torch.equal(model(x), twin(x))
    for one in (model, twin):
        remove(one)
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in one.modules())


def test_padding_takes_no_part_where_heads_stay_at_full_width():
    from transformers import EuroBertConfig, EuroBertModel

    torch.manual_seed(0)
    model = EuroBertModel(
        EuroBertConfig(
            vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    ids, mask = torch.randint(5, 99, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    record = gate_all(model, Example((), {"input_ids": ids, "attention_mask": mask}))
    assert all(plan.mode == "compact" for plan in record.plans)
    alone = run(model, Example((), {"input_ids": ids[1:, :7]}))[0]
    padded = run(model, Example((), {"input_ids": ids, "attention_mask": mask}))[0][1:, :7]
    assert error([padded], [alone]) < ROUNDING
