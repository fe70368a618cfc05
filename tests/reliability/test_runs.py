"""Runs that are killed, starved of disk, or begun twice; each in a process of its own."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.reliability.kills import differs_from
from dynprune.distill.lock import OutputLock
from tests.reliability.conftest import in_this_process


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    assert in_this_process(world.distill(output)).code == 0
    return output


def begin(arguments, **options):
    program = "from dynprune.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_killed_run_goes_on_to_the_same_bits(world, whole, tmp_path):
    output = tmp_path / "run"
    process = begin(world.distill(output))
    while process.poll() is None and not list(output.glob("checkpoints/step-4")):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (output / "model.safetensors").exists()
    assert differs_from(whole, world, output, run=in_this_process) is None


def test_a_run_beside_another_is_refused_and_changes_nothing(world, tmp_path):
    output = tmp_path / "run"
    with OutputLock(output):
        for flags in ([], ["--resume"], ["--overwrite"]):
            refused = in_this_process(world.distill(output, *flags))
            assert refused.fault((4,)) is None
            assert [path.name for path in output.iterdir()] == [".lock"]


@pytest.mark.parametrize("most", [0, 4096])
def test_a_model_that_does_not_fit_leaves_the_earlier_one(world, tmp_path, most):
    output = tmp_path / "model"
    assert in_this_process(world.apply(output)).code == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    limit = (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    try:
        ended = in_this_process(world.apply(output, "--overwrite"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert ended.fault((4,)) is None
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_directory_is_refused(world, tmp_path):
    tmp_path.chmod(0o500)
    assert in_this_process(world.apply(tmp_path / "out")).fault((4,)) is None
    tmp_path.chmod(0o700)
