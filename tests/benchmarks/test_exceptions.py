"""What is not asked about is counted as it is, and nothing of it stays without its reason."""

import pytest

from benchmarks.exceptions import found_in, says_why, sources

NOW = sources(None)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("x = cast(int, y)", "cast"),
        ("x = y  # type: ignore[index]", "type: ignore"),
        ("x = y  # noqa: E501", "noqa"),
        ("try:\n    x\nexcept Exception:\n    y", "broad except"),
        ("try:\n    x\nexcept (ValueError, BaseException):\n    y", "broad except"),
        ("try:\n    x\nexcept:\n    y", "broad except"),
        ("x = module._modules", "private reach"),
        ("from torch._C import x", "private reach"),
        ("from torch.utils import _pytree", "private reach"),
    ],
)
def test_each_kind_is_counted_once(text, kind):
    assert [found for found, _ in found_in(text)] == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "self._x",
        "cls._x",
        "x.__class__",
        "try:\n    x\nexcept ValueError:\n    y",
        "_x = 1",
        "x = _y",
    ],
)
def test_what_is_ones_own_is_not_counted(text):
    assert not list(found_in(text))


def test_a_comment_beside_the_line_is_a_reason_and_a_bare_ignore_is_none():
    assert says_why("try:\n    x\nexcept Exception:  # of the host\n    y", 3)
    assert not says_why("try:\n    x\nexcept Exception:\n    y", 3)
    assert not says_why("x = y  # noqa: E501", 1)


@pytest.mark.parametrize("name", NOW)
def test_everything_that_stays_has_its_reason(name):
    text = NOW[name]
    unsaid = [f"{kind}: {line}" for kind, line in found_in(text) if not says_why(text, line)]
    assert not unsaid, "say why in a comment, or in REASONS of benchmarks/exceptions.py"
