"""Labels stay small, and say what they say in compact form."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynprune.graph.labels import columns, compact, ids, overlay, tidy, varying

few = settings(max_examples=40)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@st.composite
def labels(draw):
    """Labels that vary along a drawn subset of the axes of a drawn shape."""
    shape = draw(shapes)
    small = [size if draw(st.booleans()) else 1 for size in shape]
    values = draw(st.lists(st.integers(0, 3), min_size=256, max_size=256))
    count = int(torch.tensor(small).prod())
    return torch.tensor(values[:count], dtype=torch.int32).reshape(small).expand(shape)


@few
@given(labels())
def test_tidy_changes_no_label(table):
    assert torch.equal(tidy(table.contiguous()), table)


@few
@given(labels())
def test_tidy_labels_vary_exactly_where_they_change(table):
    table = tidy(table.contiguous())
    for axis in range(table.dim()):
        constant = bool((table == table.narrow(axis, 0, 1)).all())
        assert (axis in varying(table)) == (not constant)


@few
@given(labels())
def test_compact_labels_broadcast_back(table):
    assert torch.equal(compact(tidy(table)).expand(table.shape), table)


@few
@given(labels(), st.integers(0, 3))
def test_columns_are_the_labels_if_they_depend_on_one_axis_alone(table, axis):
    axis %= table.dim()
    found = columns(tidy(table), axis)
    rows = table.movedim(axis, -1).reshape(-1, table.shape[axis])
    if found is None:
        assert not bool((rows == rows[:1]).all())
    else:
        assert torch.equal(rows, found.expand_as(rows))


@few
@given(labels())
def test_ids_are_the_set_of_labels(table):
    assert set(ids(table).tolist()) == set(table.flatten().tolist()) - {0}


@few
@given(labels())
def test_overlay_takes_the_first_where_it_names_a_neuron(table):
    other = torch.full_like(table, 7)
    assert torch.equal(overlay(table, other), torch.where(table != 0, table, other))


def test_labels_over_many_tokens_cost_a_channel_axis():
    table = tidy(torch.arange(1, 65, dtype=torch.int32).expand(2, 128 * 128, 64))
    assert compact(table).numel() == 64
