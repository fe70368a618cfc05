"""`dynprune distill`: train the gated student against its dense teacher."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynprune.errors import OutputError, RecipeError, UsageError
from dynprune.recipe import Recipe, dump_recipe

from .inspect import groups_table, summary
from .options import (
    DataDirectory,
    Device,
    DryRun,
    Json,
    Output,
    Overrides,
    Overwrite,
    Quiet,
    RecipeName,
    Seed,
    Split,
    Threads,
    Verbose,
)
from .subject import choose_device, find_recipe, prepare, require_recipe
from .terminal import Step, Terminal
from .work import keep_beside, open_work

if TYPE_CHECKING:
    from dynprune.distill import Record

_WORDS = {"images": "pictures"}
# What a run writes into its directory besides the model, and so what --overwrite may remove.
RUN_FILES = ("checkpoints", "metrics.jsonl", "report", "tensorboard", ".lock", ".model.tmp")


def run(
    data: DataDirectory,
    output: Output,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", metavar="MODEL", help="Dense model; default: the recipe's."),
    ] = None,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the latest checkpoint in the output.")
    ] = False,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="NAME", help="Run this stage alone.")
    ] = None,
    split: Split = "val",
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a student by the recipe's stages: gate the teacher, then let the copy learn from it.

    Learns from the train split and is judged on --split. Ctrl-C saves a checkpoint and stops;
    --resume goes on, and then takes the recipe from the output directory.
    """
    first = os.environ.get("RANK", "0") == "0"
    terminal = Terminal(json=json, quiet=quiet or not first, verbose=verbose)
    target = Path(output)
    written = target / "recipe.yaml"
    if resume and recipe is None and written.is_file():
        recipe = str(written)
    followed = require_recipe(find_recipe(teacher, recipe, overrides, seed=seed))
    _check_stages(followed, stage)
    _check_run(target, resume=resume, overwrite=overwrite)
    prepare(threads, followed)
    place = choose_device(device)
    work = open_work(data, ("train", split), teacher, followed, terminal, settle=False)
    loaded, (training, validation) = work.loaded, work.parts
    from dynprune import pipeline
    from dynprune.gate import is_gated
    from dynprune.pipeline.tasks import task_calls

    if is_gated(loaded.module):
        raise UsageError(f"{loaded.name} is gated; the teacher must be the dense model")
    if dry_run:
        found = pipeline.inspect_model(loaded, followed)
        terminal.result(
            {"output": str(target), "dry_run": True, "steps": followed.steps, **found.to_json()},
            groups_table(found),
            f"{summary(found)}; would train {followed.steps} steps on {len(training)} "
            f"{_WORDS.get(training.unit, training.unit)}, validate on {len(validation)}, and "
            f"write {target}",
        )
        return
    training, validation = (part.settled(loaded.module) for part in (training, validation))
    dense = pipeline.make_teacher(loaded, followed.rewrite)
    calls = task_calls(training, followed.apply.calibration.images)
    student = pipeline.apply_recipe(loaded, followed, calibration=calls)
    if first:
        _begin(target, followed, overwrite=overwrite, resume=resume)
    records = pipeline.distill(
        student,
        dense,
        followed,
        training=training,
        validation=validation,
        output=target,
        resume=resume,
        only=stage,
        device="cpu" if place == "cpu" else None,
    )
    with terminal.progress("distill") as step:
        last = follow(records, step, validation.metric)
    if first:
        keep_beside(work, target)
        result = {
            "output": str(target),
            "recipe": followed.name,
            **last,
            **work.read,
        }
        scores = "  ".join(f"{name} {value:.4f}" for name, value in last["validation"].items())
        terminal.result(result, f"{target}: {last['steps']} steps  {scores}".rstrip())


def follow(records: Iterable["Record"], step: Step, metric: str = "miou") -> dict[str, Any]:
    """Show every record as it comes; give the run's length and its last scores."""
    shown = "mIoU" if metric == "miou" else metric
    steps = 0
    scores: dict[str, float] = {}
    for record in records:
        steps, scores = record.step, dict(record.validation or scores)
        step(
            record.step,
            record.steps,
            part=record.stage,
            seconds_left=record.eta_seconds,
            loss=record.loss,
            r=round(record.prune_ratio, 3),
            **{shown: scores.get(metric)},
        )
    return {"steps": steps, "validation": scores}


def _check_stages(recipe: Recipe, stage: str | None) -> None:
    names = [known.name for known in recipe.stages]
    if not names:
        raise RecipeError(f"recipe {recipe.name} has no stages to train; see dynprune apply")
    if stage is not None and stage not in names:
        raise UsageError(f"--stage {stage!r}: recipe {recipe.name} has {', '.join(names)}")


def _check_run(directory: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a directory that this run may not write into, before any work is done."""
    from .output import MODEL_FILES, check_directory

    if resume and overwrite:
        raise UsageError("--resume continues a run and --overwrite begins it anew; give one")
    if resume and not directory.is_dir():
        raise OutputError(f"--resume: there is no run in {directory}; check -o, or begin without")
    check_directory(directory, (*MODEL_FILES, *RUN_FILES), overwrite=overwrite, resume=resume)


def _begin(directory: Path, recipe: Recipe, *, overwrite: bool, resume: bool) -> None:
    """Make the run's directory, with the recipe that it follows in it."""
    from .output import MODEL_FILES, begin_directory

    begin_directory(
        directory,
        (*MODEL_FILES, *RUN_FILES),
        overwrite=overwrite,
        resume=resume,
        files={"recipe.yaml": dump_recipe(recipe)},
    )
