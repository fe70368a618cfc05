"""Silence is one thread's own, for a block: other threads warn, log and print as before."""

import logging
import sys
import threading
import warnings

import pytest

from dynprune.host.quiet import without_logs, without_stderr, without_warnings


@pytest.fixture
def elsewhere():
    """Run a function in another thread while this one is in the middle of a block."""

    def run(function):
        thread = threading.Thread(target=function)
        thread.start()
        thread.join()

    return run


def test_warnings_of_this_thread_alone_are_ignored(elsewhere):
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with without_warnings():
            warnings.warn("ours", stacklevel=1)
            with without_warnings():
                warnings.warn("ours", DeprecationWarning, stacklevel=1)
            warnings.warn("ours", stacklevel=1)
            elsewhere(lambda: warnings.warn("theirs", stacklevel=1))
        warnings.warn("after", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["theirs", "after"]
    assert list(warnings.filters) == before


def test_filters_that_are_set_meanwhile_stay():
    with warnings.catch_warnings():
        with without_warnings():
            warnings.filterwarnings("ignore", message="somebody's own")
        assert any(
            entry[1] is not None and entry[1].match("somebody's own") for entry in warnings.filters
        )


def test_logs_of_this_thread_alone_are_dropped(elsewhere, caplog):
    child = logging.getLogger("some.library.part")
    with without_logs("some.library"):
        child.error("ours")
        logging.getLogger("some.library").warning("ours")
        logging.getLogger("other").error("kept")
        elsewhere(lambda: child.error("theirs"))
    child.error("after")
    assert [record.message for record in caplog.records] == ["kept", "theirs", "after"]
    assert not child.filters


def test_severe_records_pass(caplog):
    with without_logs("some.library", least=logging.ERROR):
        logging.getLogger("some.library").warning("dropped")
        logging.getLogger("some.library").error("passes")
    assert [record.message for record in caplog.records] == ["passes"]


def test_the_error_stream_of_this_thread_alone_is_dropped(elsewhere, capsys):
    stream = sys.stderr
    with without_stderr():
        print("ours", file=sys.stderr)
        sys.stderr.flush()
        assert sys.stderr.encoding == stream.encoding
        with without_stderr():
            print("ours", file=sys.stderr)
        elsewhere(lambda: print("theirs", file=sys.stderr))
    print("after", file=sys.stderr)
    assert sys.stderr is stream
    assert capsys.readouterr().err == "theirs\nafter\n"


def test_the_stream_is_the_processs_own_when_the_last_thread_has_left():
    stream, entered, leave = sys.stderr, threading.Event(), threading.Event()

    def other():
        with without_stderr():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with without_stderr():
        thread.start()
        entered.wait()
    assert sys.stderr is not stream
    leave.set()
    thread.join()
    assert sys.stderr is stream


def test_a_trace_leaves_the_switches_of_the_process_alone():
    """A user's own thread looks at them while a model is traced."""
    import torch
    from torch import nn

    import dynprune

    seen = []

    class Looks(nn.Sequential):
        def forward(self, x):
            seen.append(
                (
                    logging.root.manager.disable,
                    torch.backends.mha.get_fastpath_enabled(),
                    torch.get_default_dtype(),
                    torch.are_deterministic_algorithms_enabled(),
                )
            )
            return super().forward(x)

    model = Looks(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    dynprune.inspect(model, torch.randn(2, 4))
    assert set(seen) == {(0, True, torch.float32, False)}
