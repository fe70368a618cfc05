"""Telling which frames run, and what gradient checkpointing keeps of a function."""

import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from dynprune.gate.reruns import checkpoint_at, frames_until, is_running


def test_a_frame_runs_while_it_waits_and_not_afterwards():
    def inner(outer):
        return sys._getframe(0), is_running(outer, sys._getframe(0))

    here = sys._getframe(0)
    ended, waiting = inner(here)
    assert waiting
    assert is_running(here, here)
    assert not is_running(ended, here)


def test_the_frames_until_another_are_those_that_wait_for_the_first():
    here = sys._getframe(0)

    def outer():
        return inner(), sys._getframe(0)

    def inner():
        return [frame.f_code.co_name for frame in frames_until(sys._getframe(0), here)]

    assert outer()[0] == ["inner", "outer"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_function_that_runs_again_finds_what_was_kept_when_it_ran_first(reentrant):
    seen = []

    def function(x):
        found = [checkpoint_at(frame) for frame in frames_until(sys._getframe(0), None)]
        seen.append(next(pair for pair in found if pair is not None))
        return x.exp().exp()

    x = torch.randn(3, requires_grad=True)
    for _ in range(2):
        checkpoint(function, x, use_reentrant=reentrant).sum().backward()
    assert [again for _, again in seen] == [False, True, False, True]
    keepers = [keeper for keeper, _ in seen]
    assert keepers[0] is keepers[1]
    assert keepers[2] is keepers[3]
    assert keepers[0] is not keepers[2]


def test_other_frames_keep_nothing():
    assert checkpoint_at(sys._getframe(0)) is None
