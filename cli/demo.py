"""`dynprune demo`: the main job on the embedded default, end to end."""

import json as json_format
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dynprune.recipe import Recipe, load_recipe

from .distill import follow
from .options import Json, Overrides, Overwrite, Quiet, Seed, Threads, Verbose
from .subject import prepare
from .terminal import Terminal, table

if TYPE_CHECKING:
    from torch import nn

    from dynprune.data import Preprocessing, SegmentationData

DEMO_FILES = ("data", "teacher", "student", "pictures", "results.json", ".lock")
_SHOWN = 4  # scenes in the picture that compares teacher and student


def run(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="Where results go.")
    ] = "runs/demo",
    overrides: Overrides = None,
    threads: Threads = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the main job on handwritten digits in scenes: two to three minutes, no network.

    Makes the data, trains a dense teacher, gates a copy of it, distils that, evaluates both, counts
    what each computes, and writes pictures of what they see.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    changes = [*(overrides or ()), *([] if seed is None else [f"runtime.seed={seed}"])]
    recipe = load_recipe("demo", changes)
    target = Path(output)
    from .output import begin_directory, check_directory

    check_directory(target, DEMO_FILES, overwrite=overwrite)
    prepare(threads, recipe)
    begin_directory(target, DEMO_FILES, overwrite=overwrite)
    results = _run(recipe, target, terminal)
    (target / "results.json").write_text(
        json_format.dumps(results, indent=1) + "\n", encoding="utf-8"
    )
    terminal.result(
        {"output": str(target), **results},
        _figures(results),
        f"pictures: {target / 'pictures'}  student: {target / 'student'}",
    )
    terminal.next(
        f"dynprune report all {target / 'student'} --data {target / 'data'} "
        f"--teacher {target / 'teacher'} -o report.html"
    )
    terminal.note("on a model of yours: dynprune inspect MODEL")


def _run(recipe: Recipe, target: Path, terminal: Terminal) -> dict[str, Any]:
    """Do the five parts of the job and give their figures."""
    from dynprune import demo, pipeline
    from dynprune.data import open_dataset
    from dynprune.measure.macs import macs_report
    from dynprune.models import load_model
    from dynprune.pipeline.pictures import preprocessing_of
    from dynprune.tasks.evaluate import evaluate

    started = time.monotonic()
    seed = recipe.runtime.seed
    terminal.note("1/5 data: handwritten digits in textured scenes")
    demo.make_dataset(target / "data", seed=seed)
    training = open_dataset(target / "data", "train")
    validation = open_dataset(target / "data", "val")

    terminal.note("2/5 teacher: a small dense SegFormer")
    scored = None
    with terminal.progress("teacher") as step:
        for made in demo.train_teacher(training, validation, target / "teacher", seed=seed):
            step(made.step, made.steps, loss=made.loss)
            scored = made.evaluation
    assert scored is not None

    terminal.note("3/5 apply: fold the decoder, gate the neurons")
    loaded = load_model(str(target / "teacher"), input_shape=recipe.model.input)
    teacher = pipeline.make_teacher(loaded, recipe.rewrite)
    with terminal.working():
        student = pipeline.apply_recipe(
            loaded, recipe, calibration=pipeline.calibration_calls(training, recipe)
        )
    preprocessing = preprocessing_of(recipe)
    untrained = evaluate(student, validation, preprocessing)

    terminal.note("4/5 distil: the student learns from the teacher")
    records = pipeline.distill(
        student,
        teacher,
        recipe,
        training=training,
        validation=validation,
        output=target / "student",
        device="cpu",
    )
    with terminal.progress("distil") as step:
        last = follow(records, step)

    terminal.note("5/5 report: what was saved, and what it cost")
    macs = macs_report(
        student, loaded.example, list(pipeline.calibration_calls(validation, recipe))
    )
    _compare(target / "pictures", teacher, student, validation, preprocessing)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "miou": {
            "teacher": scored.miou,
            "student_untrained": untrained.miou,
            "student": last["validation"]["miou"],
        },
        "macs": macs.to_json(),
    }


def _compare(
    directory: Path,
    teacher: "nn.Module",
    student: "nn.Module",
    data: "SegmentationData",
    preprocessing: "Preprocessing",
) -> None:
    """Write picture, label, teacher and student side by side, a row a scene."""
    import torch

    from dynprune.data import write_picture
    from dynprune.tasks.predict import overlay, predict

    rows = []
    for index in range(min(_SHOWN, len(data))):
        image, label = data.load(index)
        seen = [predict(model, image, preprocessing) for model in (teacher, student)]
        views = [image, *(overlay(image, labels) for labels in (label, *seen))]
        rows.append(torch.cat(views, dim=2))
        for name, view in zip(("picture", "label", "teacher", "student"), views, strict=True):
            write_picture(directory / f"{index}_{name}.png", view)
    write_picture(directory / "comparison.png", torch.cat(rows, dim=1))


def _figures(results: dict[str, Any]) -> Table:
    """The demo's figures: what each model scores, and what it computes."""
    macs, miou = results["macs"], results["miou"]
    executed = macs["pruned"]["executed"]["mean"]
    rows: Sequence[tuple[str, float, float | None]] = (
        ("teacher, dense", macs["dense"], miou["teacher"]),
        ("teacher, rewritten", macs["rewritten"], miou["teacher"]),
        ("student, before training", executed, miou["student_untrained"]),
        ("student", executed, miou["student"]),
    )
    return table(
        "model",
        ">M MACs executed",
        ">of dense",
        ">mIoU",
        title=f"input {macs['input']}, {results['seconds']:.0f} s in all",
        rows=[
            (name, f"{count / 1e6:.2f}", f"{count / macs['dense']:.1%}", f"{score:.4f}")
            for name, count, score in rows
        ],
    )
