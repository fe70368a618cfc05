"""A run in a process of its own, stopped from outside at a moment that it does not choose."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynprune.distill import CheckpointStore
from tests.distill.course import course, models

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("number", "case", "code"),
    [
        (signal.SIGTERM, "workers", 130),
        (signal.SIGINT, "accumulate", 130),
        (signal.SIGKILL, "ema", -signal.SIGKILL),
    ],
)
def test_a_stopped_process_resumes_to_the_bits_of_an_uninterrupted_run(
    number, case, code, tmp_path
):
    command = [sys.executable, "-m", "tests.distill.course", str(tmp_path), case, "--pause", "0.3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        for line in process.stdout:
            if line.strip() == "step 4":
                os.killpg(process.pid, number)  # loading workers get it too, as from a terminal
                break
        rest = process.stdout.read()
    assert process.returncode == code
    store = CheckpointStore(tmp_path / "checkpoints")
    if number != signal.SIGKILL:
        # The step that ran was finished and saved, and none after it.
        assert f"resume from {store.directory / 'step-4'}" in rest
        assert store.latest().step == 4
    assert not list(store.directory.glob(".writing-*"))

    finals = []
    here = "plain" if case == "workers" else case  # who loads the batches changes nothing
    for output in (tmp_path, None):
        student, teacher = models(here)
        records = list(course(here, output, student, teacher))
        assert records[-1].step == 6
        finals.append(student.state_dict())
    for name, value in finals[0].items():
        assert torch.equal(value, finals[1][name]), name
