"""Unpacked attention computes what nn.MultiheadAttention computes, argument by argument."""

import copy
import itertools

import pytest
import torch
from torch import nn

from dynprune.errors import UsageError
from dynprune.rewrite import UnpackedAttention

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # one product of three times the rows, or three products

MASKS = {
    "no mask": lambda tokens, span: {},
    "boolean attention mask": lambda tokens, span: {
        "attn_mask": torch.ones(tokens, span, dtype=torch.bool).triu(1)
    },
    "added attention mask": lambda tokens, span: {"attn_mask": torch.randn(tokens, span)},
    "a mask a head": lambda tokens, span: {"attn_mask": torch.randn(3 * 4, tokens, span)},
    "padding": lambda tokens, span: {"key_padding_mask": padding(span)},
    "added padding": lambda tokens, span: {"key_padding_mask": torch.randn(3, span)},
    "both": lambda tokens, span: {
        "attn_mask": torch.ones(tokens, span, dtype=torch.bool).triu(1),
        "key_padding_mask": padding(span),
    },
}


def padding(span):
    mask = torch.zeros(3, span, dtype=torch.bool)
    mask[1, -2:] = True
    return mask


def pair(**options):
    """Return an attention with random biases, and its unpacked form."""
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(16, 4, **options).eval()
    for parameter in packed.parameters():
        nn.init.normal_(parameter, std=0.3)
    return packed, UnpackedAttention(copy.deepcopy(packed))


def same(found, expected):
    """Compare outputs and weights."""
    torch.testing.assert_close(found[0], expected[0], **ROUNDING)
    if expected[1] is None:
        assert found[1] is None
    else:
        torch.testing.assert_close(found[1], expected[1], **ROUNDING)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_it_equals_torch_for_every_mask(mask, bias, batch_first):
    packed, unpacked = pair(bias=bias, batch_first=batch_first)
    for (tokens, span), need, average in itertools.product(
        [(6, 6), (5, 9)], [True, False], [True, False]
    ):
        q, k, v = torch.randn(3, tokens, 16), torch.randn(3, span, 16), torch.randn(3, span, 16)
        if not batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        options = {"need_weights": need, "average_attn_weights": average}
        options |= MASKS[mask](tokens, span)
        found, expected = unpacked(q, k, v, **options), packed(q, k, v, **options)
        same(found, expected)
        assert batch_first or found[0].is_contiguous()


@pytest.mark.parametrize("need", [True, False])
def test_it_equals_torch_for_one_sequence_without_a_batch(need):
    packed, unpacked = pair()
    q, k = torch.randn(5, 16), torch.randn(7, 16)
    same(unpacked(q, k, k, need_weights=need), packed(q, k, k, need_weights=need))
    hidden = torch.tensor([False] * 5 + [True] * 2)
    same(unpacked(q, k, k, hidden, need), packed(q, k, k, hidden, need))


@pytest.mark.parametrize("need", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_the_hint_of_a_causal_mask_is_taken_as_torch_takes_it(need, padded):
    packed, unpacked = pair(batch_first=True)
    x = torch.randn(3, 6, 16)
    options = {"attn_mask": torch.ones(6, 6, dtype=torch.bool).triu(1), "is_causal": True}
    if padded:
        options["key_padding_mask"] = padding(6)
    same(
        unpacked(x, x, x, need_weights=need, **options),
        packed(x, x, x, need_weights=need, **options),
    )


@pytest.mark.parametrize("need", [True, False])
def test_gradients_and_dropout_equal_those_of_torch(need):
    packed, unpacked = pair(dropout=0.4, batch_first=True)
    packed.double().train(), unpacked.double().train()
    x = torch.randn(3, 6, 16).double()
    results = []
    for module in (packed, unpacked):
        torch.manual_seed(7)
        y = module(x, x, x, need_weights=need)[0]
        y.square().sum().backward()
        results.append(y)
    torch.testing.assert_close(results[1], results[0])
    gradients = [getattr(unpacked, f"{name}_proj").weight.grad for name in "qkv"]
    torch.testing.assert_close(torch.cat(gradients), packed.in_proj_weight.grad)


def test_heads_may_be_narrow_and_differently_so():
    """Zeroed channels of every head may as well be absent: the scale is the full width's."""
    _, unpacked = pair(batch_first=True)
    narrow = copy.deepcopy(unpacked)
    x = torch.randn(3, 6, 16)
    for name, kept in (("q", 3), ("k", 3), ("v", 2)):
        keep = torch.arange(16).view(4, 4)[:, :kept].flatten()
        wide, thin = getattr(unpacked, f"{name}_proj"), getattr(narrow, f"{name}_proj")
        gone = torch.ones(16, dtype=torch.bool).scatter(0, keep, False)
        wide.weight.data[gone], wide.bias.data[gone] = 0.0, 0.0
        thin.weight.data, thin.bias.data = thin.weight.data[keep], thin.bias.data[keep]
        if name == "v":
            narrow.out_proj.weight.data = narrow.out_proj.weight.data[:, keep]
    for need in (True, False):
        same(narrow(x, x, x, need_weights=need), unpacked(x, x, x, need_weights=need))


def test_what_others_ask_of_an_attention_is_answered():
    packed, unpacked = pair(batch_first=True)
    for name in ("embed_dim", "num_heads", "head_dim", "batch_first", "_qkv_same_embed_dim"):
        assert getattr(unpacked, name) == getattr(packed, name)
    assert torch.equal(unpacked.in_proj_weight, packed.in_proj_weight)
    assert torch.equal(unpacked.in_proj_bias, packed.in_proj_bias)
    assert pair(bias=False)[1].in_proj_bias is None
    assert "num_heads=4" in repr(unpacked)


def test_the_way_back_gives_the_same_parameters_and_the_weights_of_now():
    packed, _ = pair()
    weight, bits = packed.in_proj_weight, packed.in_proj_weight.detach().clone()
    unpacked = UnpackedAttention(packed)
    assert sum(p.numel() for p in unpacked.parameters()) == 4 * (16 * 16 + 16)
    unpacked.release()
    assert weight.numel() == 0  # kept once, not twice
    with torch.no_grad():
        unpacked.k_proj.weight.mul_(2.0)
    unpacked.train()
    assert unpacked.to_packed() is packed
    assert packed.in_proj_weight is weight
    assert packed.training
    bits[16:32] *= 2.0
    assert torch.equal(weight, bits)


def test_a_wrong_mask_is_refused_as_torch_refuses_it():
    _, unpacked = pair(batch_first=True)
    x = torch.randn(3, 6, 16)
    for options, message in (
        ({"attn_mask": torch.zeros(1, 6)}, r"attn_mask has shape \(1, 6\); it must be \(6, 6\)"),
        ({"key_padding_mask": torch.zeros(3, 5)}, r"key_padding_mask has shape \(3, 5\)"),
        ({"attn_mask": torch.zeros(6, 6, dtype=torch.long)}, "must be boolean or floating"),
        ({"is_causal": True}, "is_causal=True needs attn_mask"),
    ):
        with pytest.raises(UsageError, match=message):
            unpacked(x, x, x, **options)
