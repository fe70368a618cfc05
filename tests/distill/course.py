"""A tiny training run as a program, to be stopped by signals or shared by processes.

``python -m tests.distill.course OUTPUT CASE [--pause SECONDS]`` prints a line for every step.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from dynprune.distill import (
    AdamW,
    Execution,
    Interrupted,
    Penalty,
    Record,
    Reporting,
    TrainingPlan,
    train,
)
from dynprune.distill.schedule import LearningRate, PruneSchedule
from tests.distill import tiny

CALL = ("validate", "output", "resume", "only")
CASES = {
    "plain": Execution(device="cpu"),
    "workers": Execution(device="cpu", workers=1),
    "ema": Execution(device="cpu", ema=0.9, clip_norm=1.0),
    "accumulate": Execution(device="cpu", accumulate=2, precision="bf16"),
    "shared": Execution(device="cpu", batchnorm="frozen"),
    "shared-accumulate": Execution(device="cpu", batchnorm="frozen", accumulate=2),
}


def models(case: str) -> tuple[nn.Module, nn.Module]:
    """Build teacher and student; what processes share has no dropout, which is each one's own."""
    teacher = tiny.folded_teacher(0.0 if case.startswith("shared") else 0.1)
    return tiny.gated(teacher), teacher


def course(
    case: str, output: Path | None, student: nn.Module, teacher: nn.Module, **changes: object
) -> Iterator[Record]:
    """Train by the case's settings, from where ``output`` stands."""
    shared = case.startswith("shared")
    settings: dict[str, object] = {
        "stages": [tiny.FEATURES, tiny.LOGITS],
        # Where processes are compared, eps keeps rounding noise from becoming whole steps.
        "optimizer": AdamW(lr=1e-2, eps=1e-2 if shared else 1e-8, gate_lr_factor=3.0),
        "learning_rate": LearningRate(warmup_steps=2),
        "sparsity": PruneSchedule(end_step=4),
        "penalties": [Penalty(weight=1e-3)],
        "execution": CASES[case],
        "reporting": Reporting(log_every=1, save_every=2, validate_every=3),
        "validate": validate,
        "output": output,
        "resume": True,
        "seed": 5,
        "facts": {"recipe": {"name": "tiny"}},
    }
    settings |= changes
    call = {name: settings.pop(name) for name in CALL if name in settings}
    return train(student, teacher, tiny.batch, TrainingPlan(**settings), **call)


@torch.no_grad()
def validate(model: nn.Module) -> dict[str, float]:
    images, labels = tiny.batch(10_000)
    logits = nn.functional.interpolate(model(images).logits, labels.shape[-2:], mode="bilinear")
    torch.rand(3)  # a validation that draws numbers changes nothing
    return {"miou": float((logits.argmax(1) == labels).float().mean())}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("case")
    parser.add_argument("--pause", type=float, default=0.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    student, teacher = models(arguments.case)
    try:
        for record in course(arguments.case, arguments.output, student, teacher):
            print(f"step {record.step}", flush=True)
            time.sleep(arguments.pause)
    except Interrupted as stop:
        print(stop, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
