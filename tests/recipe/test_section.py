"""Patterns that a recipe may hold."""

import re
import time

import pytest

from dynprune.errors import RecipeError
from dynprune.recipe import load_recipe


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+!",
        r"(a|a)*!",
        r"(a|aa)+!",
        r"((a+)b?)*!",
        r"(a?b?)*!",
        r"(?:a{2,}){3,}",
        r".*.*.*.*.*!",
    ],
)
def test_a_pattern_that_may_never_end_is_refused(pattern):
    with pytest.raises(RecipeError, match="may take for ever"):
        load_recipe("segformer-b0", [f"apply.ignore=['re:{pattern}']"])


@pytest.mark.parametrize(
    "pattern",
    [
        r"decode_head\..*",
        r".*\.(layers|blocks)\.\d+\.mlp\..*",
        r"(encoder|decoder)\.(fc1|fc2)",
        r"(?:block\.)?[0-9]+\.[^.|+*()]+",
        r"a\.(b\.)+c",
        r"[]|(]+[^]*]",
    ],
)
def test_a_plain_pattern_is_accepted_and_matches_quickly(pattern):
    recipe = load_recipe("segformer-b0", [f"apply.ignore=['re:{pattern}']"])
    assert recipe.apply.ignore == (f"re:{pattern}",)
    began = time.perf_counter()
    re.fullmatch(pattern, "a." * 50 + "!")
    assert time.perf_counter() - began < 1.0
