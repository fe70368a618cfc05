"""Ctrl-C during a training run: the state is saved, and the run goes on from it."""

import os
import signal

import pytest
from dynprune.cli import distill

from tests.cli.conftest import same_weights


@pytest.fixture
def interrupted(monkeypatch):
    """Press Ctrl-C after the first record."""

    pressed = []

    def pressing(records):
        for record in records:
            yield record
            if not pressed:
                pressed.append(True)
                os.kill(os.getpid(), signal.SIGINT)

    follow = distill.follow
    monkeypatch.setattr(distill, "follow", lambda records, *rest: follow(pressing(records), *rest))


def test_ctrl_c_saves_a_checkpoint_exits_130_and_resume_ends_with_the_same_bits(
    run, dense, recipe, data, tmp_path, interrupted
):
    flags = ("--recipe", recipe, "--data", data, "--teacher", dense, "--device", "cpu", "-o")
    stopped = run("distill", *flags, tmp_path / "stopped", code=130)
    assert stopped.out == ""
    assert "resume from" in stopped.err
    assert list((tmp_path / "stopped" / "checkpoints").iterdir())
    run("distill", *flags, tmp_path / "stopped", "--resume")
    run("distill", *flags, tmp_path / "whole")
    assert same_weights(tmp_path / "stopped", tmp_path / "whole")
