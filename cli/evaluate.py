"""`dynprune eval`: how well a model does on a data set."""

from typing import Annotated

import typer

from .bounds import check_bounds, parse_bounds
from .options import (
    DataDirectory,
    Device,
    FailIf,
    Json,
    ModelName,
    Overrides,
    Quiet,
    RecipeName,
    Split,
    Threads,
    Verbose,
)
from .subject import find_recipe, place_of, prepare
from .terminal import Terminal, table
from .work import open_work, require_teacher


def run(
    model: ModelName,
    data: DataDirectory,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="The dense model, where scores say how close to it a model is.",
        ),
    ] = None,
    split: Split = "val",
    recipe: RecipeName = None,
    overrides: Overrides = None,
    fail_if: FailIf = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a model on a data set, by what its task is.

    Label maps: mIoU, pixel accuracy, and every class; logits are resized to the labels' size; one
    confusion matrix over the whole set; label 255, and what data.ignore_index says, counts for
    nothing. A folder a class: top-1 and top-5. Without labels (pictures, text, module:function):
    how close outputs stay to those of --teacher. Pictures go in as the recipe says, else as the
    model's own preprocessor_config.json says, else at full size (a classifier's: at its own size).
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    bounds = parse_bounds(fail_if)
    followed = find_recipe(model, recipe, overrides)
    prepare(threads, followed)
    place = place_of(model, device)
    work = open_work(data, (split,), model, followed, terminal, device=place, teacher=teacher)
    (part,) = work.parts
    dense = None
    if part.compares:
        dense = require_teacher(work, f"dynprune eval {model}").module
    with terminal.progress("evaluate") as step:
        found = part.evaluate(work.loaded.module, dense, device=place, progress=step)
    for note in found.notes:
        terminal.note(note)
    record = {**found.to_json(part.unit), **work.read}
    rows = [table(*found.columns, rows=found.rows)] if found.rows else []
    line = f"{found.line()}  {part.unit} {found.samples}  ({split} of {data})"
    terminal.result(record, *rows, line)
    check_bounds(bounds, record)
