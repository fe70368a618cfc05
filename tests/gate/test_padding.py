"""Which tokens are padding, whatever form the mask has; and what other masks are not about."""

import pytest
import torch

from dynprune.gate.padding import PaddingMask, Parameters, masks_of, real_tokens

REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0]])
FAR = torch.finfo(torch.float32).min


def added(kept):
    """What is added to the scores of attention: zero where a token counts."""
    return torch.zeros(kept.shape).masked_fill(kept == 0, FAR)


#: form -> (name, mask)
FORMS = {
    "integers": ("attention_mask", REAL),
    "bools": ("attention_mask", REAL.bool()),
    "ones and zeros": ("attention_mask", REAL.float()),
    "half": ("attention_mask", REAL.half()),
    "added": ("attention_mask", added(REAL)),
    "minus infinity": (
        "attention_mask",
        torch.zeros(3, 5).masked_fill(REAL == 0, float("-inf")),
    ),
    "minus ten thousand": ("attention_mask", (1.0 - REAL.float()) * -1e4),
    "of queries": ("attention_mask", REAL[:, None].expand(3, 4, 5).bool()),
    "broadcast": ("attention_mask", added(REAL)[:, None, None]),
    "of heads and queries": ("mask", added(REAL)[:, None, None].expand(3, 2, 4, 5)),
    "bools of queries": ("attention_mask", REAL.bool()[:, None, None].expand(3, 1, 4, 5)),
    "torch's bools": ("src_key_padding_mask", REAL == 0),
    "torch's numbers": (
        "key_padding_mask",
        torch.zeros(3, 5).masked_fill(REAL == 0, float("-inf")),
    ),
    "short name": ("mask", REAL),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_mask_says_the_same(form):
    assert torch.equal(real_tokens(PaddingMask(*FORMS[form])), REAL.bool())


@pytest.mark.parametrize("name", ["attention_mask", "src_key_padding_mask"])
def test_a_mask_that_hides_nothing_counts_every_token(name):
    mask = torch.ones(2, 3) if name == "attention_mask" else torch.zeros(2, 3)
    assert real_tokens(PaddingMask(name, mask)).all()
    assert real_tokens(PaddingMask("attention_mask", torch.zeros(2, 1, 1, 3))).all()


def test_a_row_of_padding_alone_is_padding_in_masks_of_ones_and_zeros():
    for mask in (torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.bool)):
        both = torch.cat([mask, torch.ones_like(mask)])
        wanted = [[False] * 3, [True] * 3]
        assert real_tokens(PaddingMask("attention_mask", both)).tolist() == wanted
    both = torch.tensor([[0.0] * 3, [1.0] * 3])
    assert real_tokens(PaddingMask("attention_mask", both)).tolist() == wanted
    far = added(torch.tensor([[0, 0, 0], [1, 1, 1]]))
    assert real_tokens(PaddingMask("attention_mask", far)).tolist() == wanted


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("src_key_padding_mask", (2, 1, 1, 5)),
        ("pixel_mask", (2, 8, 8)),
        ("attention_mask", (5,)),
        ("attention_mask", ()),
        ("attn_mask", (5, 5)),
        ("src_mask", (5, 5)),
        ("tgt_mask", (5, 5)),
        ("memory_mask", (5, 5)),
        ("causal_mask", (5, 5)),
    ],
)
def test_masks_of_other_things_are_not_read(name, shape):
    assert real_tokens(PaddingMask(name, torch.ones(shape))) is None


def test_masks_are_found_by_position_and_by_name_and_nothing_else_is():
    mask, other = torch.ones(2, 5), torch.zeros(2, 5)
    names = ("input_ids", "attention_mask", "bool_masked_pos", "masked_lm_labels")
    found = masks_of(
        (mask, mask, other),
        {"decoder_attention_mask": other},
        Parameters(names, padding_alone=False),
    )
    assert [m.name for m in found.own] == ["attention_mask", "decoder_attention_mask"]
    both = Parameters((*names, "decoder_attention_mask"), padding_alone=False)
    assert [m.name for m in masks_of((), {"decoder_attention_mask": other}, both).own] == []
    assert found.own[0].tensor is mask
    assert (
        masks_of((mask, None), {"attention_mask": None}, Parameters(names, padding_alone=False)).own
        == ()
    )
    assert masks_of((), {"mask_ratio": 0.5}, Parameters((), padding_alone=False)).own == ()


def test_masks_of_another_part_are_told_apart():
    mask = torch.ones(2, 5)
    given = {"encoder_attention_mask": mask, "attention_mask": mask, "cross_mask": mask}
    found = masks_of((), given, Parameters(tuple(given), padding_alone=False))
    assert [m.name for m in found.own] == ["attention_mask"]
    assert [m.name for m in found.others] == ["encoder_attention_mask", "cross_mask"]


DECODER = ("hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask")
CROSS = ("hidden_states", "key_value_states", "attention_mask")


@pytest.mark.parametrize("length", [5, 7])  # of the other part: as long as its own, or not
@pytest.mark.parametrize("names", [DECODER, CROSS])
def test_each_mask_is_about_the_tokens_of_its_own_part(names, length):
    x, y = torch.randn(2, 5, 8), torch.randn(2, length, 8)
    mask = torch.ones(2, length)
    given = {"hidden_states": x, names[2] if names is DECODER else names[1]: y, names[-1]: mask}
    found = masks_of((), given, Parameters(names, padding_alone=False))
    assert not found.about(x)
    assert not found.about(x * 2)
    assert [m.tensor is mask for m in found.about(y)] == [True]
    assert len(found.about(y * 2)) == (length == 7)  # otherwise nothing tells it from its own
    assert found.end(x) == (names is DECODER)
    assert not found.end(y)


def test_a_decoder_with_a_mask_of_its_own_reads_that_one():
    x, y, mask = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.ones(2, 5)
    found = masks_of((x, mask, y, mask * 2), {}, Parameters(DECODER, padding_alone=False))
    assert [m.tensor is mask for m in found.about(x)] == [True]
    assert not found.end(x)


def test_self_attention_by_three_equal_arguments_has_no_other_part():
    x, mask = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)
    names = ("query", "key", "value", "key_padding_mask")
    found = masks_of((x, x, x, mask), {}, Parameters(names, padding_alone=True))
    assert len(found.about(x)) == 1
    cross = masks_of((x, x + 1, x + 1, mask), {}, Parameters(names, padding_alone=True))
    assert not cross.about(x)


def test_of_torch_s_own_modules_padding_masks_alone_count():
    mask = torch.ones(4, 4)
    given = {"src_mask": mask, "src_key_padding_mask": mask, "attn_mask": mask}
    found = masks_of((), given, Parameters((), padding_alone=True))
    assert [m.name for m in found.own] == ["src_key_padding_mask"]


@pytest.mark.parametrize("hidden", [0.0, -1e4])
def test_four_axes_of_numbers_are_read_as_factors_or_as_terms(hidden):
    """DeBERTa multiplies by ones and zeros (B, 1, T, T); others add zeros and large negatives."""
    real = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    shown = 1.0 if hidden == 0.0 else 0.0
    both = real[:, None, :, None] & real[:, None, None, :]
    mask = torch.where(both, shown, hidden)
    assert torch.equal(real_tokens(PaddingMask("attention_mask", mask)), real)


def test_four_axes_of_zeros_hide_nothing():
    assert bool(real_tokens(PaddingMask("attention_mask", torch.zeros(2, 1, 3, 3))).all())
