"""Calls that are made of a call: rows, sizes, padding and later tokens."""

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.laws.calls import (
    by_position,
    changed_later,
    floats,
    joined,
    paddings,
    repeated,
    resized,
    rows_of,
    strided,
    taken,
)


class Model(nn.Module):
    """Only its signature counts."""

    def forward(self, ids, attention_mask=None, scale=1.0, *, only_by_name=None):
        return ids


@pytest.fixture
def call():
    ids = torch.arange(1, 25).view(3, 8)
    return Example((), {"ids": ids, "attention_mask": torch.ones_like(ids)})


def test_rows_are_taken_in_any_order_and_number(call):
    ids = call.kwargs["ids"]
    assert torch.equal(taken(call, [2, 0]).kwargs["ids"], ids[[2, 0]])
    assert taken(call, []).kwargs["ids"].shape == (0, 8)
    assert [row.kwargs["ids"].tolist() for row in rows_of(call)] == ids[:, None].tolist()
    assert torch.equal(repeated(call, 5).kwargs["ids"], ids[[0, 1, 2, 0, 1]])


def test_what_is_no_row_of_the_batch_stays_as_it_is():
    table = torch.randn(8, 8)
    call = Example((torch.randn(3, 4), table, "text"))
    assert torch.equal(taken(call, [1]).args[1], table)
    assert taken(call, [1]).args[2] == "text"


def test_calls_are_joined_where_their_shapes_and_settings_agree(call):
    both = joined([call, taken(call, [0])])
    assert both is not None
    assert torch.equal(both.kwargs["ids"], call.kwargs["ids"][[0, 1, 2, 0]])
    assert joined([call, Example((), {"ids": torch.ones(3, 9)})]) is None
    other = Example((), {**call.kwargs, "ids": call.kwargs["ids"][:, :5]})
    assert joined([call, other]) is None


def test_types_and_memory_change_and_values_do_not(call):
    picture = Example((torch.randn(2, 3, 4, 5), torch.randn(2, 6)))
    other = strided(picture)
    assert all(map(torch.equal, picture.tensors, other.tensors))
    assert not any(tensor.is_contiguous() for tensor in other.tensors)
    assert floats(picture, torch.float64).tensors[0].dtype == torch.float64
    assert floats(call, torch.float64).kwargs["ids"].dtype == torch.int64


def test_arguments_are_placed_where_the_signature_has_them(call):
    placed = by_position(Model(), call)
    assert placed is not None
    assert not placed.kwargs
    assert torch.equal(placed.args[1], call.kwargs["attention_mask"])
    skipping = by_position(Model(), Example((), {"ids": call.kwargs["ids"], "scale": 2.0}))
    assert skipping is not None
    assert skipping.args[1:] == (None, 2.0)
    assert by_position(Model(), Example((), {**call.kwargs, "only_by_name": 1})) is None
    assert by_position(Model(), Example((call.kwargs["ids"],))) is None


def test_sequences_are_cut_and_lengthened_together(call):
    sizes = dict(resized(call))
    assert list(sizes) == ["4 instead of 8", "11 instead of 8", "7 instead of 8"]
    longer = sizes["11 instead of 8"].kwargs
    assert longer["ids"].shape == longer["attention_mask"].shape == (3, 11)
    assert torch.equal(longer["ids"][:, :8], call.kwargs["ids"])
    picture = Example((torch.randn(2, 3, 16, 24),))
    shapes = [other.args[0].shape[2:] for _, other in resized(picture)]
    assert shapes == [(48, 24), (8, 24), (15, 21)]


def test_later_tokens_alone_are_new_or_earlier_ones(call):
    changes = list(changed_later(call))
    before = call.kwargs["ids"]
    for change in changes:
        later, earlier = change.later.kwargs["ids"], change.earlier.kwargs["ids"]
        assert (change.name, change.length) == ("ids", 8)
        assert ((before != later) == (torch.arange(8) >= change.kept)).all()
        assert ((before != earlier) == (torch.arange(8) < change.kept)).all()
    assert [change.kept for change in changes] == [4, 7]


@pytest.mark.parametrize("given", [True, False])
def test_a_row_is_padded_on_either_side_by_the_mask_that_the_model_takes(call, given):
    if not given:
        call = Example((), {"ids": call.kwargs["ids"]})
    right, left = paddings(Model(), call)
    row = call.kwargs["ids"][1, :4]
    for form in (right, left):
        ids, mask = form.padded.kwargs["ids"], form.padded.kwargs["attention_mask"]
        assert torch.equal(form.alone.kwargs["ids"][0], row)
        assert torch.equal(form.alone.kwargs["attention_mask"], torch.ones(1, 4, dtype=torch.long))
        assert torch.equal(ids[1][mask[1].bool()], row)
        assert torch.equal(ids[0], call.kwargs["ids"][0])
    assert left.padded.kwargs["attention_mask"][1].tolist() == [0] * 4 + [1] * 4
    assert right.padded.kwargs["attention_mask"][1].tolist() == [1] * 4 + [0] * 4


def test_a_decoder_is_padded_by_its_own_mask():
    ids = torch.arange(1, 17).view(2, 8)
    names = ("ids", "attention_mask", "decoder_ids", "decoder_attention_mask")
    values = (ids, torch.ones_like(ids), ids + 16, torch.ones_like(ids))
    call = Example((), dict(zip(names, values, strict=True)))
    forms = {form.label: form for form in paddings(Model(), call)}
    own = forms["padded on the right by decoder_attention_mask"]
    assert own.alone.kwargs["decoder_ids"].shape == (1, 4)
    assert own.alone.kwargs["ids"].shape == (1, 8)


def test_a_call_of_one_row_or_without_a_mask_is_not_padded(call):
    assert not list(paddings(Model(), taken(call, [0])))
    assert not list(paddings(nn.Identity(), Example((torch.randn(3, 8),))))
