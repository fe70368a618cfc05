"""The course of a training run, from its metrics.jsonl: loss, pruned share and validation."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dynprune.report.drawing import Drawing
from dynprune.report.figures import Row

__all__ = ["TrainingCurve", "read_training_curve", "training_curve_rows"]

Points = Sequence[tuple[float, float]]
_METRICS = {"miou": "mIoU", "top1": "top-1", "cosine": "cosine"}
_MOST = 300  # points of a line; more are thinned out


@dataclass(frozen=True)
class TrainingCurve:
    """Figures of a run by step.

    Attributes:
        stages: name of every stage and the step at which it was first seen.
        loss: of the steps since the point before.
        pruned: mean prune ratio of the gates.
        miou: of validations, or another task's figure in its place.
        metric: which figure that is.
    """

    stages: Sequence[tuple[str, float]]
    loss: Points
    pruned: Points
    miou: Points
    metric: str = "miou"


def read_training_curve(directory: Path) -> TrainingCurve | None:
    """Read the records of a run; None where there are none, or they cannot be read."""
    try:
        lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        loss = [(float(r["step"]), float(r["loss"])) for r in records]
        pruned = [(float(r["step"]), float(r["prune_ratio"])) for r in records]
        known = {name for r in records for name in r["validation"] or {}}
        metric = next((name for name in _METRICS if name in known), "miou")
        scored = [r for r in records if metric in (r["validation"] or {})]
        miou = [(float(r["step"]), float(r["validation"][metric])) for r in scored]
        stages: dict[str, float] = {}
        for record in records:
            stages.setdefault(str(record["stage"]), float(record["step"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    numbers = [value for points in (loss, pruned, miou) for point in points for value in point]
    if len(records) < 2 or not all(map(math.isfinite, numbers)):
        return None
    return TrainingCurve(list(stages.items()), loss, pruned, miou, metric)


def training_curve_rows(course: TrainingCurve) -> list[Row]:
    """Draw a line for each figure, all over the same steps."""
    last = max(step for step, _ in course.loss)

    def percent(value: float) -> str:
        return f"{value:.1%}"

    rows = []
    for name, points, style, show in (
        ("loss, logarithmic", _logarithms(course.loss), "ours", lambda v: f"{math.exp(v):.3g}"),
        ("pruned share", course.pruned, "paper-1", percent),
        (f"validation {_METRICS[course.metric]}", course.miou, "paper-2", percent),
    ):
        if points:
            rows.append(_row(name, points, last, style, show, course.stages))
    return rows


def _logarithms(points: Points) -> Points:
    return [(step, math.log(max(value, 1e-12))) for step, value in points]


def _row(
    name: str,
    points: Points,
    last: float,
    style: str,
    show: Callable[[Any], str],
    stages: Sequence[tuple[str, float]],
) -> Row:
    """Draw one line between its least and its greatest value, and say where it ends."""
    thin = points[:: max(1, len(points) // _MOST)]
    thin = [*thin, *([points[-1]] if thin[-1] != points[-1] else [])]
    values = [value for _, value in points]
    low, span = min(values), (max(values) - min(values)) or 1.0
    height = 64
    made = Drawing(height, f"{name} from {show(values[0])} to {show(values[-1])}")
    made.line(0, height - 1, 100, height - 1, "grid")
    for stage, step in stages:
        at = 100 * (step - 1) / last
        made.line(at, 0, at, height, "grid")
        made.text(at, 10, stage, dx=4, style="axis")
    spots = [
        (min(99.0, 100 * step / last), height - 6 - (height - 24) * (value - low) / span)
        for step, value in thin
    ]
    for (x1, y1), (x2, y2) in pairwise(spots):
        made.line(x1, y1, x2, y2, f"course {style}")
    made.mark("circle", *spots[-1], style, f"step {points[-1][0]:.0f}: {show(values[-1])}")
    return Row(name, "", made, f"{show(values[0])} → {show(values[-1])}")
