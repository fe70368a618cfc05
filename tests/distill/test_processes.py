"""Two processes under either launcher see what one process sees."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynprune.distill import CheckpointStore
from tests.distill.course import course, models

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "{port}"],
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "{port}"),
    ],
}


def launch(launcher, output, case):
    port = free_port()
    launching = [part.format(port=port) for part in LAUNCHERS[launcher]]
    command = [sys.executable, "-m", *launching, "-m", "tests.distill.course", str(output), case]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "case"), [("torchrun", "shared"), ("accelerate", "shared-accumulate")]
)
def test_two_processes_train_to_the_weights_of_one(launcher, case, tmp_path):
    done = launch(launcher, tmp_path, case)
    student, teacher = models(case)
    records = list(course(case, None, student, teacher))
    read = CheckpointStore(tmp_path / "checkpoints").latest()
    assert read.step == 6
    assert read.state["processes"] == 2
    start = models(case)[0].state_dict()
    way = [float((value - start[name]).abs().max()) for name, value in student.state_dict().items()]
    assert max(way) > 1e-2
    for name, value in student.state_dict().items():
        # Sums over the batch in another order: rounding, a thousandth of the way at most.
        torch.testing.assert_close(read.tensors["model"][name], value, rtol=1e-4, atol=1e-5)
    # Each process yields every record; the first alone writes.
    assert done.stdout.count("step 6") == 2
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(records)
