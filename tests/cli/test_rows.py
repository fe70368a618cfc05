"""Rows of tables stand for exactly the names that they sum up."""

import re
from itertools import product

from dynprune.cli.rows import merged_names, name_of, pattern_of
from hypothesis import given
from hypothesis import strategies as st


def spelled_out(row):
    """Return every name that a row's ranges stand for."""
    parts = re.split(r"(\d[\d,-]*)", row)
    choices = []
    for part in parts:
        numbers = []
        for span in part.split(",") if part[:1].isdigit() else ():
            first, _, last = span.partition("-")
            numbers += [str(number) for number in range(int(first), int(last or first) + 1)]
        choices.append(numbers or [part])
    return ["".join(chosen) for chosen in product(*choices)]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), unique=True, max_size=20))
def test_rows_stand_for_the_names_given_once_each_and_for_no_other(places):
    names = [f"stages.{stage}.blocks.{block}.fc" for stage, block in places]
    rows = merged_names(names)
    assert sorted(name for _, own in rows for name in own) == sorted(names)
    assert all(sorted(spelled_out(row)) == sorted(own) for row, own in rows)


def test_layers_in_a_line_take_one_row():
    assert [row for row, _ in merged_names(f"layer.{i}.q" for i in range(24))] == ["layer.0-23.q"]


def test_names_of_different_patterns_stay_apart():
    rows = [row for row, _ in merged_names(["a.0.q", "b.0.q", "a.1.q", "head"])]
    assert rows == ["a.0-1.q", "b.0.q", "head"]


def test_a_name_may_hold_the_sign_that_stands_for_numbers():
    assert [row for row, _ in merged_names(["a#.0", "a#.1", "a#"])] == ["a#.0-1", "a#"]


def test_a_pattern_and_its_numbers_make_the_name_again():
    assert pattern_of("blocks.11.mlp.0") == "blocks.#.mlp.#"
    assert name_of("blocks.7.mlp.1", (frozenset({11}), frozenset({0}))) == "blocks.11.mlp.0"
