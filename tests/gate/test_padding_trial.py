"""Padding takes no part in what gates choose: a padded row computes what it computes alone."""

import pytest
import torch
import transformers as hf
from torch import nn

from dynprune.example import Example
from dynprune.gate import gates, recording, set_execution
from dynprune.gate.padding_trial import padding_faults
from dynprune.host.modes import at_inference
from dynprune.rewrite import rewrite
from tests.gate.zoo_laws import gate_all, stir
from tests.zoo import UNPACKED, ZOO, enliven

ROUNDING = 1e-4  # of the largest value: sums over other lengths run in another order
LENGTH, SHORT = 10, 4
_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "vocab_size": 64}  # fmt: skip


def lively(model):
    torch.manual_seed(0)
    model.eval()
    enliven(model)
    return model


def ids(length, seed=1):
    return torch.randint(5, 60, (2, length), generator=torch.Generator().manual_seed(seed))


def halved(dtype=torch.long, length=LENGTH):
    mask = torch.ones(2, length, dtype=dtype)
    mask[1, SHORT:] = 0
    return mask


def largest(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


def broken_by(model, padded, alone, out):
    """How far a padded second row is from the row alone, in compact and masked execution."""
    found = []
    with at_inference(model):
        for execution in ("compact", "masked"):
            set_execution(model, execution)
            wanted = out(alone(model))
            found.append(largest(out(padded(model))[1:, : wanted.shape[1]], wanted))
    return max(found)


def gated(model, example):
    """Gate whatever may be, with predictors that move, and give the reasons of the rest."""
    record = gate_all(model, example)
    stir(model)
    with recording() as seen, at_inference(model):
        example.batched(3, seed=2).run(model)
    moved = [len(o.selection.index.unique(dim=0)) > 1 for every in seen.values() for o in every]
    assert any(moved)
    return {plan.group.name: plan.reason for plan in record.plans if plan.mode == "refused"}


# Text


def additive(mask):
    return (1.0 - mask.float())[:, None, None] * torch.finfo(torch.float32).min


FORMS = {
    "integers": lambda: halved(),
    "bools": lambda: halved(torch.bool),
    "ones and zeros": lambda: halved(torch.float32),
    "four axes": lambda: halved(torch.bool)[:, None, None].expand(2, 1, LENGTH, LENGTH),
    "added": lambda: additive(halved()),
}


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_padded_text_equals_the_text_alone(form, by_name):
    model = lively(hf.BertModel(hf.BertConfig(**_TINY)))
    x, mask = ids(LENGTH), FORMS[form]()
    dense = (lambda m: m(x, mask), lambda m: m(x[1:, :SHORT]))

    def padded(m):
        return m(input_ids=x, attention_mask=mask) if by_name else m(x, mask)

    def out(output):
        return output.last_hidden_state

    with torch.no_grad():
        assert largest(out(dense[0](model))[1:, :SHORT], out(dense[1](model))) < ROUNDING
    gated(model, Example((), {"input_ids": x, "attention_mask": halved()}))
    assert len(gates(model)) >= 6
    assert broken_by(model, padded, dense[1], out) < ROUNDING


@pytest.mark.parametrize("name", ["roberta", "distilbert", "t5_encoder"])
def test_padding_of_other_text_models_takes_no_part(name):
    model, _ = ZOO[name].made()
    x, mask = ids(LENGTH), halved()
    gated(model, Example((), {"input_ids": x, "attention_mask": torch.ones_like(mask)}))
    assert gates(model)

    def out(output):
        return output[0]

    def alone(m):
        return m(input_ids=x[1:, :SHORT])

    assert broken_by(model, lambda m: m(input_ids=x, attention_mask=mask), alone, out) < ROUNDING


def test_padding_before_a_text_takes_no_part():
    model = lively(hf.BertModel(hf.BertConfig(**_TINY)))
    x, mask = ids(LENGTH), halved().flip(1)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    gated(model, Example((), {"input_ids": x, "attention_mask": mask}))

    def out(output):
        return output.last_hidden_state.flip(1)

    def padded(m):
        return m(input_ids=x, attention_mask=mask, position_ids=places)

    def alone(m):
        return m(input_ids=x[1:, -SHORT:])

    assert broken_by(model, padded, alone, out) < ROUNDING


def test_a_batch_of_padding_alone_gives_numbers():
    model = lively(hf.BertModel(hf.BertConfig(**_TINY)))
    gated(model, Example((), {"input_ids": ids(LENGTH), "attention_mask": halved()}))
    mask = halved()
    mask[1] = 0
    with torch.no_grad():
        alone = model(input_ids=ids(LENGTH)[:1]).last_hidden_state
        found = model(input_ids=ids(LENGTH), attention_mask=mask).last_hidden_state
    assert found.isfinite().all()
    assert largest(found[:1], alone) < ROUNDING


# Two texts


def t5():
    config = hf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=64)
    return lively(hf.T5Model(config))


@pytest.mark.parametrize("ratio", ["as long", "longer"])
@pytest.mark.parametrize("masked", ["encoder", "decoder", "both"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_each_mask_of_an_encoder_and_a_decoder_is_about_its_own_tokens(kind, masked, ratio):
    config = hf.BartConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=64,
        max_position_embeddings=40, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    model = t5() if kind == "t5" else lively(hf.BartModel(config))
    model.config.use_cache = False
    length = LENGTH if ratio == "as long" else LENGTH + 3
    text, reply = ids(LENGTH), ids(length, seed=2)
    call = {"input_ids": text, "decoder_input_ids": reply}
    groups = gate_with_causal(model, Example((), {**call, "attention_mask": halved()}))
    assert any("decoder" in name for name in groups)
    masks = {}
    alone = {"input_ids": text[1:], "decoder_input_ids": reply[1:]}
    if masked != "decoder":
        masks["attention_mask"] = halved()
        alone["input_ids"] = text[1:, :SHORT]
    if masked != "encoder":
        masks["decoder_attention_mask"] = halved(length=length)
        alone["decoder_input_ids"] = reply[1:, :SHORT]

    def out(output):
        return output.last_hidden_state

    assert broken_by(model, lambda m: m(**call, **masks), lambda m: m(**alone), out) < ROUNDING


def gate_with_causal(model, example):
    from dynprune.gate import GateConfig, gate_model
    from dynprune.graph import find_groups

    groups = find_groups(model, example).groups
    configs = {group.name: GateConfig(align=1) for group in groups}
    gate_model(model, example, groups, configs, allow_causal=True)
    stir(model)
    return list(gates(model))


# Torch's own


def torch_encoder():
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False
    )
    return lively(model)


@pytest.mark.parametrize("unpacked", [True, False])
@pytest.mark.parametrize("batch", [2, LENGTH])
def test_torch_s_padding_mask_counts_and_its_mask_of_pairs_does_not(batch, unpacked):
    model = torch_encoder()
    x = torch.randn(batch, LENGTH, 32)
    example = Example((x,))
    if unpacked:
        rewrite(model, example, UNPACKED)
    gated(model, example)
    pairs = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    pairs[:, -1] = True  # nobody sees the last token; every token still counts
    padding = torch.zeros(batch, LENGTH, dtype=torch.bool)
    padding[1, SHORT:] = True

    def out(output):
        return output[:2]

    def padded(m):
        return m(x, src_key_padding_mask=padding)

    assert broken_by(model, padded, lambda m: m(x[1:2, :SHORT]), out) < ROUNDING
    with at_inference(model):
        rows = torch.cat([model(x[i : i + 1], mask=pairs) for i in range(batch)])
        assert largest(model(x, mask=pairs), rows) < ROUNDING


class OwnLayer(nn.TransformerEncoderLayer):
    """A user's own layer on torch's."""


def test_a_mask_of_pairs_is_no_padding_in_a_layer_of_the_user_s_own_either():
    layer = OwnLayer(32, 4, 64, batch_first=True)
    model = lively(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    x = torch.randn(LENGTH, LENGTH, 32)
    gated(model, Example((x[:2],)))
    pairs = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
    with at_inference(model):
        rows = torch.cat([model(x[i : i + 1], mask=pairs) for i in range(LENGTH)])
        assert largest(model(x, mask=pairs), rows) < ROUNDING


# What is not text


def test_padding_of_sounds_is_that_of_the_frames():
    config = hf.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        conv_dim=[16, 16], conv_kernel=[10, 3], conv_stride=[5, 2], num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, feat_extract_norm="layer", do_stable_layer_norm=True,
    )  # fmt: skip
    model = lively(hf.Wav2Vec2Model(config))
    mask = torch.ones(2, 810, dtype=torch.long)
    mask[1, 405:] = 0
    x = torch.randn(2, 810) * mask
    call = {"input_values": x, "attention_mask": mask}

    def out(output):
        return output.last_hidden_state

    with at_inference(model):
        alone = out(model(x[1:, :405]))
        assert largest(out(model(**call))[1:, : alone.shape[1]], alone) < ROUNDING
    refused = gated(model, Example((), call))
    assert gates(model), refused
    assert broken_by(model, lambda m: m(**call), lambda m: m(x[1:, :405]), out) < ROUNDING


def test_text_beside_pictures_is_told_from_them():
    config = hf.ViltConfig(
        **_TINY, image_size=32, patch_size=8, max_position_embeddings=40, max_image_length=-1
    )
    model = lively(hf.ViltModel(config))
    x, pictures = ids(LENGTH), torch.randn(2, 3, 32, 32)
    call = {"input_ids": x, "attention_mask": halved(), "pixel_values": pictures}
    refused = gated(model, Example((), call))
    assert gates(model), refused

    def out(output):
        return output.pooler_output[:, None]

    def alone(m):
        return m(input_ids=x[1:, :SHORT], pixel_values=pictures[1:])

    assert broken_by(model, lambda m: m(**call), alone, out) < ROUNDING


def test_features_beside_text_are_told_from_it():
    model = lively(hf.VisualBertModel(hf.VisualBertConfig(**_TINY, visual_embedding_dim=16)))
    x, features = ids(LENGTH), torch.randn(2, 6, 16)
    call = {
        "input_ids": x,
        "attention_mask": halved(),
        "visual_embeds": features,
        "visual_attention_mask": torch.ones(2, 6, dtype=torch.long),
    }
    refused = gated(model, Example((), call))
    assert gates(model), refused

    def out(output):
        return output.pooler_output[:, None]

    def alone(m):
        return m(
            input_ids=x[1:, :SHORT],
            visual_embeds=features[1:],
            visual_attention_mask=torch.ones(1, 6, dtype=torch.long),
        )

    assert broken_by(model, lambda m: m(**call), alone, out) < ROUNDING


# Models whose masks say nothing that a gate could read


class Registers(nn.Module):
    """Tokens of its own beside those of the text; its blocks get no mask but of their scores."""

    def __init__(self, registers=3, name="attention_mask"):
        super().__init__()
        self.embed, self.name = nn.Embedding(64, 32), name
        self.registers = nn.Parameter(torch.randn(1, registers, 32))
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 32)
        self.qkv = nn.Linear(32, 32)

    def run(self, x, mask):
        h = self.embed(x)
        count = self.registers.shape[1]
        h = torch.cat([self.registers.expand(len(x), -1, -1), h], 1)
        if mask is not None:
            seen = torch.cat([mask.new_ones(len(x), count), mask], 1) != 0
            weights = seen[:, None].float() / seen.sum(1)[:, None, None]
        else:
            weights = h.new_full((len(x), 1, h.shape[1]), 1 / h.shape[1])
        h = h + weights @ self.qkv(h)
        return h + self.fc2(torch.tanh(self.fc1(h)))

    def forward(self, input_ids, attention_mask=None):
        return self.run(input_ids, attention_mask)


class OtherName(Registers):
    """Takes the same mask under the name of another kind."""

    def forward(self, input_ids, attn_mask=None):
        return self.run(input_ids, attn_mask)


@pytest.mark.parametrize(
    ("make", "name"),
    [(Registers, "attention_mask"), (OtherName, "attn_mask"), (lambda: OtherName(0), "attn_mask")],
)
def test_a_gate_that_padding_would_reach_is_refused_with_the_reason(make, name):
    model = lively(make())
    refused = gate_all(model, Example((), {"input_ids": ids(LENGTH), name: halved()}))
    assert not gates(model)
    reasons = {plan.reason for plan in refused.plans}
    assert any(f"padding that {name} marks is among its tokens" in reason for reason in reasons)


def test_the_same_tokens_without_registers_are_gated():
    model = lively(Registers(0))
    x = ids(LENGTH)
    gated(model, Example((), {"input_ids": x, "attention_mask": halved()}))
    assert gates(model)
    found = broken_by(
        model, lambda m: m(x, halved()), lambda m: m(x[1:, :SHORT]), lambda output: output
    )
    assert found < ROUNDING


def test_masks_that_hide_patches_are_not_read_as_padding():
    model, _ = ZOO["beit"].made()
    beit = model.beit
    x, hidden = torch.randn(2, 3, 32, 32), torch.zeros(2, 16, dtype=torch.bool)
    hidden[1, 4:] = True
    gated(beit, Example((x,)))
    with recording() as seen, at_inference(beit):
        if beit.embeddings.mask_token is None:
            beit.embeddings.mask_token = nn.Parameter(torch.randn(1, 1, 32))
        beit(x, bool_masked_pos=hidden)
    assert all(found.real is None for every in seen.values() for found in every)


def test_faults_are_none_where_the_model_has_no_mask():
    model, example = ZOO["vit"].made()
    gate_all(model, example)
    assert padding_faults(model, example.batched(2)) == {}
