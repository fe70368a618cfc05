"""A gate of the token's grain is causal by construction, in prefill, decoding and generation."""

import inspect

import pytest
import torch
import transformers as hf

from dynprune.example import Example
from dynprune.gate import GateConfig, gate_model, gates, recording, remove
from dynprune.graph import find_groups
from dynprune.planning.calibrate import calibrate
from tests.gate.zoo_laws import ROUNDING

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MODELS = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**SIZES)),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config(**SIZES)),
    "gpt2": (
        hf.GPT2LMHeadModel,
        hf.GPT2Config(
            vocab_size=97, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
        ),
    ),
}
CASES = [
    ("llama", "low-rank"),
    ("llama", "gate-projection"),
    ("qwen2", "both"),
    ("gpt2", "low-rank"),
]


def gated(name, predict):
    torch.manual_seed(0)
    kind, config = MODELS[name]
    model = kind(config).eval()
    calls = [Example((torch.randint(3, 97, (2, 10)),)) for _ in range(4)]
    groups = find_groups(model, calls[0]).groups
    settings = GateConfig(0.5, grain="token", predict=predict, align=1)
    gate_model(model, calls[0], groups, {group.name: settings for group in groups})
    calibrate(model, calls)
    assert len(gates(model)) == 2
    return model


@pytest.fixture(scope="module", params=CASES, ids=str)
def model(request):
    return gated(*request.param)


@pytest.fixture
def ids():
    return torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(5))


def test_later_tokens_never_change_what_earlier_ones_get(model, ids):
    later = ids.clone()
    later[:, 7:] = 3 + (later[:, 7:] + 11) % 90
    with torch.no_grad():
        before, after = model(ids).logits, model(later).logits
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("rows", [1, 2])
def test_decoding_token_by_token_equals_prefill(model, ids, rows):
    with torch.no_grad():
        whole = model(ids[:rows]).logits
        start = model(ids[:rows, :4], use_cache=True)
        taken = inspect.signature(model.forward).parameters
        name = "cache" if "cache" in taken else "past_key_values"  # as transformers calls it
        parts, cache = [start.logits], {name: start[name]}
        for place in range(4, ids.shape[1]):
            with recording() as seen:
                step = model(ids[:rows, place : place + 1], **cache, use_cache=True)
            how = {o.selection.execution for found in seen.values() for o in found}
            assert how == ({"compact"} if rows == 1 else {"masked"})
            parts.append(step.logits)
            cache = {name: step[name]}
    error = (torch.cat(parts, 1) - whole).abs().max() / whole.abs().max()
    assert float(error) < ROUNDING


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_gives_what_it_gives_without(model, ids, beams):
    settings = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    found = [
        model.generate(ids[:, :5], attention_mask=torch.ones(2, 5), use_cache=cached, **settings)
        for cached in (True, False)
    ]
    assert torch.equal(*found)


def test_padding_on_the_left_changes_no_answer(model, ids):
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        padded = model(ids, attention_mask=mask, position_ids=places).logits[1, 5:]
        alone = model(ids[1:, 5:]).logits[0]
    assert float((padded - alone).abs().max() / alone.abs().max()) < ROUNDING


def test_rows_do_not_meet(model, ids):
    with torch.no_grad():
        together = model(ids).logits
        apart = torch.cat([model(ids[:1]).logits, model(ids[1:]).logits])
    assert float((together - apart).abs().max() / apart.abs().max()) < ROUNDING


def test_an_instances_choice_is_still_refused_where_it_would_see_the_future():
    torch.manual_seed(0)
    kind, config = MODELS["llama"]
    model = kind(config).eval()
    example = Example((torch.randint(3, 97, (2, 10)),))
    groups = find_groups(model, example).groups
    record = gate_model(model, example, groups, {g.name: GateConfig(0.5) for g in groups})
    (reason,) = {p.reason for p in record.plans if p.group.kind == "ffn"}
    assert reason == "a causal model's gate would see tokens of the future"
    remove(model)
