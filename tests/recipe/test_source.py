"""Recipes' YAML: what is read, what is refused."""

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynprune.errors import RecipeError
from dynprune.recipe.source import NODE_LIMIT, SIZE_LIMIT_BYTES, dump_yaml, parse_yaml


def parse(text):
    return parse_yaml(text, origin="test")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("1e-4", 1e-4),
        ("6.0e-5", 6e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("010", 10),
        ("-7", -7),
        ("0:30", "0:30"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("2026-01-01", "2026-01-01"),
        ("'1'", "1"),
        ("<<", "<<"),
        ("=", "="),
        ("[1, [2.0, x]]", [1, [2.0, "x"]]),
        ("{on: {off: no}}", {"on": {"off": "no"}}),
    ],
)
def test_scalars_follow_the_core_schema(text, value):
    read = parse(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.system [echo]", "the tag .* is refused"),
        ("a: !!python/name:os.system ''", "the tag .* is refused"),
        ("a: !local 1", "the tag .* is refused"),
        ("!!int '3'", "the tag .* is refused"),
        ("{a: 1, a: 2}", "the key 'a' is there twice"),
        ("{1.5: 2}", "a key must be a word or a whole number"),
        ("{-1: 2}", "a key must be a word or a whole number"),
        ("{true: 2}", "a key must be a word or a whole number"),
        ("{1: 2, 1: 3}", "the key '1' is there twice"),
        ("{1: 2, '1': 3}", "the key '1' is there twice"),
        ("? [a]\n: 1", "a key must be a word"),
        ("a: b: c", "mapping values are not allowed here .line 1"),
        ("[1", "line 1"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("&a [*a]", "more than"),
        ("*nowhere", "undefined alias"),
        ("\x00", "not a recipe"),
        ("[" * 5000, "not a recipe"),
        ("9" * 5000, "out of range"),
    ],
)
def test_what_is_not_plain_data_is_refused_in_one_line(text, message):
    with pytest.raises(RecipeError, match=message) as raised:
        parse(text)
    assert "\n" not in str(raised.value)


def test_anchors_that_explode_are_refused_before_they_do():
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    started = time.monotonic()
    with pytest.raises(RecipeError, match=f"more than {NODE_LIMIT} values"):
        parse(f"a0: &a0 [x]\n{levels}")
    assert time.monotonic() - started < 5


def test_a_harmless_anchor_is_written_out():
    assert parse("{a: &x [1, 2], b: *x}") == {"a": [1, 2], "b": [1, 2]}


def test_a_document_over_the_size_bound_is_refused():
    with pytest.raises(RecipeError, match=f"at most {SIZE_LIMIT_BYTES}"):
        parse("a" * (SIZE_LIMIT_BYTES + 1))


DATA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)
    | st.sampled_from(["on", "no", "1e-4", "010", "0:30", "<<", "=", "~", "re:a\\.b.*", "*", "!x"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abcdefgno", min_size=1, max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(DATA)
def test_what_is_written_reads_back_equal(data):
    assert parse(dump_yaml(data)) == data


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text("{}[]:,&*!?|>-'\"% #\n ab1", max_size=60))
def test_any_text_is_read_or_refused_in_our_words(text):
    with contextlib.suppress(RecipeError):
        assert dump_yaml(parse(text))


def test_a_key_that_is_a_whole_number_is_its_digits():
    assert parse_yaml("{0: 1, 255: 2, a: 3}", origin="it") == {"0": 1, "255": 2, "a": 3}
