"""A foreign model may fail; a bug of ours may not hide behind it."""

import pytest

from dynprune.gate.instances import InstanceLayout, to_instances
from dynprune.host.failures import first_line, reraise_ours


def caught(action):
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


def ours_with_a_bug():
    to_instances(None, 2, InstanceLayout(1))  # None has no shape: a line of ours fails


def theirs(error):
    def host():
        raise error

    return host


def test_a_bug_whose_line_is_ours_is_raised_again():
    error = caught(ours_with_a_bug)
    with pytest.raises(AttributeError) as found:
        reraise_ours(error)
    assert found.value is error


@pytest.mark.parametrize(
    "error", [AttributeError("x"), TypeError("x"), KeyError("x"), RuntimeError("x"), OSError("x")]
)
def test_whatever_a_host_raises_is_the_host_s(error):
    assert reraise_ours(caught(theirs(error))) is None


def test_what_we_refuse_with_a_reason_is_no_bug():
    import torch

    layout = InstanceLayout(0, folded=True)
    error = caught(lambda: to_instances(torch.zeros(7, 2, 3), 2, layout))
    assert reraise_ours(error) is None


def test_an_error_that_was_never_raised_is_nobody_s():
    assert reraise_ours(TypeError("x")) is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one  \n"), "one"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 500), "x" * 120),
    ],
)
def test_the_first_line_of_an_error_fits_a_table(error, line):
    assert first_line(error) == line
