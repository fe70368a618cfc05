"""Make one row: build its student, train it where the row says so, and measure it."""

import json
import logging
import resource
import shutil
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynprune.data import SegmentationData, TrainingBatches, open_dataset
from dynprune.models import LoadedModel, load_model
from dynprune.pipeline import apply_recipe, calibration_calls, learn, make_teacher
from dynprune.pipeline.arguments import batch_arguments
from dynprune.recipe import Recipe, load_recipe
from dynprune.rewrite import rewrite

from .measure import measure
from .rows import Row
from .static import prune_statically

__all__ = ["Places", "result_path", "run_row"]

logger = logging.getLogger(__name__)

TAYLOR_BATCHES = 8


@dataclass(frozen=True)
class Places:
    """Where things are.

    Attributes:
        data: directory with the data sets, one a folder.
        models: directory with the teachers, ``segformer-b0-DATASET``.
        results: directory of the results, a JSON file each.
        runs: directory of unfinished runs.
        threads: of a row's process; what its recipe says where None.
    """

    data: Path
    models: Path
    results: Path
    runs: Path
    threads: int | None = None


def result_path(places: Places, row: Row, dataset: str, seed: int) -> Path:
    """Return the file of one result."""
    return places.results / f"{dataset}-{row.name}-{seed}.json"


def row_recipe(row: Row, dataset: str, seed: int) -> Recipe:
    """Return the recipe of a row; STEPS in its overrides is the budget of the data set's recipe."""
    steps = str(load_recipe(row.recipe(dataset)).steps)
    changes = [change.replace("STEPS", steps) for change in row.overrides]
    return load_recipe(row.recipe(dataset), [*changes, f"runtime.seed={seed}"])


def run_row(row: Row, dataset: str, seed: int, places: Places) -> dict[str, Any]:
    """Make one row and write its result; a run that was stopped goes on where it was.

    Returns:
        The result.
    """
    recipe = row_recipe(row, dataset, seed)
    threads = places.threads or recipe.runtime.threads
    if threads is not None:
        torch.set_num_threads(threads)
    training = open_dataset(places.data / dataset, "train")
    validation = open_dataset(places.data / dataset, "val")
    shape = recipe.model.input
    assert shape is not None
    loaded = load_model(str(places.models / f"segformer-b0-{dataset}"), input_shape=shape)
    teacher = make_teacher(loaded, recipe.rewrite)
    began = time.perf_counter()
    student = make_student(row, loaded, recipe, training)
    setup = time.perf_counter() - began
    steps, seconds = 0, 0.0
    if row.kind not in ("teacher", "untrained", "cut"):
        run = places.runs / f"{dataset}-{row.name}-{seed}"
        run.mkdir(parents=True, exist_ok=True)
        records = learn(
            student, teacher, recipe, training=training, output=run, resume=True, device="cpu"
        )
        for record in records:
            steps, seconds = record.step, record.seconds
            logger.info("%s: step %d, loss %.4f, %.0f s", run.name, steps, record.loss, seconds)
        shutil.rmtree(run)
    result: dict[str, Any] = {
        "row": row.name,
        "dataset": dataset,
        "seed": seed,
        **measure(student, validation, shape[-2:]),
        "steps": steps,
        "seconds": round(seconds, 1),
        "setup_seconds": round(setup, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": torch.get_num_threads(),
        "recipe": row.recipe(dataset),
        "set": [*row.overrides, f"runtime.seed={seed}"],
    }
    path = result_path(places, row, dataset, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def make_student(
    row: Row, loaded: LoadedModel, recipe: Recipe, training: SegmentationData
) -> nn.Module:
    """Turn the dense model into the row's student, in place, untrained."""
    model = loaded.module
    if row.kind == "teacher":
        return model
    if row.kind in ("magnitude", "taylor", "cut"):
        labelled = None
        if row.kind == "taylor":
            batches = TrainingBatches(training, **batch_arguments(recipe))
            labelled = islice((batches[step] for step in range(TAYLOR_BATCHES)), TAYLOR_BATCHES)
        prune_statically(model, loaded.example.tensors[0], recipe.sparsity.final, labelled=labelled)
    if row.kind in ("dense", "magnitude", "taylor", "cut"):
        rewrite(model, loaded.example, recipe.rewrite)
        return model
    return apply_recipe(loaded, recipe, calibration=calibration_calls(training, recipe))
