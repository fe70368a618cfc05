"""Signals as wishes."""

import os
import signal
import threading
from pathlib import Path

import pytest

from dynprune.distill.interrupt import Interrupted, StopRequested, StopSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_remembered_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) == before


def test_a_second_sigint_interrupts_at_once():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_work_that_can_be_repeated_is_left_at_once():
    with StopSignal() as stop:
        with pytest.raises(StopRequested), stop.breaking():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


def test_outside_the_main_thread_handlers_are_left_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with StopSignal():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_interrupt_says_where_to_resume():
    error = Interrupted(Path("runs/a/checkpoints/step-4"), 4)
    assert isinstance(error, KeyboardInterrupt)
    assert str(error) == "stopped after step 4; resume from runs/a/checkpoints/step-4"
    assert str(Interrupted(None, 2)) == "stopped after step 2; nothing was saved"
