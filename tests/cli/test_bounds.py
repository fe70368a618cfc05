"""Bounds on a result."""

import pytest
from dynprune.cli.bounds import check_bounds, parse_bounds

from dynprune.errors import BoundError, UsageError

RESULT = {"miou": 0.5, "pruned": {"executed": {"max": 3.0e9}}, "name": "x", "ok": True}


@pytest.mark.parametrize(
    "text", ["miou<0.5", "miou > 0.5", "miou <= 0.4", "miou>=0.6", "pruned.executed.max>3.1e9"]
)
def test_a_comparison_that_does_not_hold_passes(text):
    check_bounds(parse_bounds([text]), RESULT)


@pytest.mark.parametrize("text", ["miou<0.6", "miou<=0.5", "miou>=0.5", "pruned.executed.max>1e9"])
def test_a_comparison_that_holds_breaks_the_bound(text):
    with pytest.raises(BoundError, match="a bound is broken"):
        check_bounds(parse_bounds([text]), RESULT)


def test_every_broken_bound_is_named():
    with pytest.raises(BoundError, match=r"miou is 0.5, which is < 1; miou is 0.5, which is > 0"):
        check_bounds(parse_bounds(["miou<1", "miou>0"]), RESULT)


@pytest.mark.parametrize("text", ["", "miou", "miou<", "<1", "miou=1", "miou<<1", "a<x", "a<1<2"])
def test_a_bound_that_cannot_be_read_is_refused(text):
    with pytest.raises(UsageError, match="is not a key"):
        parse_bounds([text])


@pytest.mark.parametrize("key", ["accuracy", "pruned", "name", "ok", "miou.x"])
def test_a_bound_on_no_number_lists_the_numbers(key):
    with pytest.raises(UsageError, match=r"it has miou, pruned.executed.max"):
        check_bounds(parse_bounds([f"{key}<1"]), RESULT)
