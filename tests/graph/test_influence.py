"""What the reach of changes says of time, on rows that are written down."""

import pytest
import torch

from dynprune.graph.influence import Parts, order_in, order_of, reached, sketch

HALVES = Parts(16, 8, 8)


def rows(start, stop, length=16):
    marks = torch.zeros(length, dtype=torch.bool)
    marks[start:stop] = True
    return marks


@pytest.mark.parametrize(
    ("early", "late", "order"),
    [
        ((0, 16), (8, 16), "causal"),  # attention behind a mask, a recurrence, a running sum
        ((0, 10), (8, 16), "causal"),  # a convolution of three, padded at its left
        ((0, 9), (7, 16), "mutual"),  # the same, padded at both sides
        ((0, 8), (8, 16), "apart"),
        ((0, 16), (0, 16), "whole"),
        ((0, 16), (5, 16), "causal"),  # chunks of five that see what came before
        ((0, 0), (8, 16), "last"),
        ((0, 8), (0, 0), "first"),
        ((0, 0), (0, 0), "untouched"),
    ],
)
def test_the_order_of_time_is_read_off_the_rows(early, late, order):
    assert order_of(rows(*early), rows(*late), HALVES) == order


def test_a_token_that_all_others_see_does_not_make_a_window_causal():
    late = rows(6, 16)
    late[0] = True
    assert order_of(rows(0, 16), late, HALVES) == "mutual"


def test_a_causal_filter_is_told_where_each_row_stands_for_two_tokens():
    assert order_of(rows(0, 8, 8), rows(4, 8, 8), HALVES) == "causal"
    assert order_of(rows(0, 5, 8), rows(4, 8, 8), HALVES) == "apart"  # a stride leans by one row


def test_the_axis_of_channels_does_not_hide_that_of_tokens():
    early, late = rows(0, 16)[:, None].expand(16, 16), rows(8, 16)[:, None].expand(16, 16)
    assert order_in(early, late, HALVES) == "causal"


def test_rounding_of_a_number_taken_over_everything_reaches_no_row():
    before = torch.randn(1, 16, 32)
    after = before * (1 + 1e-7)
    after[:, 8:] += torch.randn(8, 32)
    assert reached(sketch(before), sketch(after)).tolist() == [[False] * 8 + [True] * 8]


def test_a_change_that_keeps_the_sum_of_the_channels_is_seen():
    before = torch.randn(1, 4, 32)
    after = before.clone()
    after[0, 2] = before[0, 2].flip(0)
    assert reached(sketch(before), sketch(after)).tolist() == [[False, False, True, False]]


def test_another_shape_cannot_be_compared():
    assert reached(sketch(torch.ones(2, 3)), sketch(torch.ones(3, 3))) is None
