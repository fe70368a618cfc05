"""Two processes of the command line train a classifier to the weights of one."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dynprune.distill import CheckpointStore
from tests.cli import task_models as tiny

ROOT = Path(__file__).parents[2]
LAUNCHER = [
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "{port}"),
]


def distil(place, output, launching=()):
    command = [
        sys.executable, "-m", *launching, *(["-m"] if launching else []), "dynprune.cli.main",
        "distill", "--recipe", "recipe.yaml", "--data", "colours", "--teacher", "classifier",
        "-o", str(output), "--device", "cpu", "--json",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(output / "model.safetensors")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    tiny.write_classifier(root / "classifier")
    tiny.write_pictures(root / "colours")
    recipe = tiny.APPLY + tiny.RECIPES["classification"] + tiny.STAGES
    (root / "recipe.yaml").write_text(recipe)
    return root


@pytest.mark.slow
def test_two_processes_train_a_classifier_to_the_weights_of_one(place):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = distil(place, place / "one")
    shared = distil(place, place / "two", [part.format(port=port) for part in LAUNCHER])
    saved = CheckpointStore(place / "two" / "checkpoints").latest()
    assert saved.state["processes"] == 2
    start = load_file(place / "classifier" / "model.safetensors")
    assert alone.keys() == shared.keys()
    moved = [n for n in start if n in alone and start[n].shape == alone[n].shape]
    way = max(float((alone[name] - start[name]).abs().max()) for name in moved)
    assert way > 1e-3
    apart = {name: float((shared[name] - value).abs().max()) for name, value in alone.items()}
    # Sums over the batch in another order: rounding, a thousandth of the way at most. A bias of the
    # keys shifts all scores of a query alike, so that its gradient is rounding alone, of which
    # AdamW makes whole steps.
    free = re.compile(r".*(key|k_proj)(\.dense)?\.bias")
    assert not {n: far for n, far in apart.items() if far > 1e-3 * way and not free.fullmatch(n)}
