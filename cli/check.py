"""`dynprune check`: prove on the user's own model and inputs what the tests prove on ours."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dynprune.errors import LawError

from .options import (
    Device,
    InputSize,
    Json,
    ModelName,
    Overrides,
    Quiet,
    RecipeName,
    Split,
    Threads,
    Verbose,
    Weights,
    parse_size,
)
from .subject import find_recipe, load_subject, prepare
from .terminal import Terminal, table
from .work import open_work

if TYPE_CHECKING:
    from dynprune.pipeline import CheckReport


def run(
    model: ModelName,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Data to try it on; noise where not given."),
    ] = None,
    split: Split = "val",
    export: Annotated[
        bool, typer.Option("--export", help="Try torch.export, torch.compile and ONNX, too.")
    ] = False,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    weights: Weights = "pretrained",
    input_size: InputSize = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Hold a model to the laws of pruning, beside its dense form; say what could not be tried.

    Nothing skipped equals dense; every row, size, thread, precision and file gives the same answer.
    A law counts where the dense model has it. Exit 5 where one is broken. A dense MODEL is gated
    first where --recipe is given.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    size = parse_size(input_size) if input_size else None
    followed = find_recipe(model, recipe, overrides)
    prepare(threads, followed)
    from dynprune.gate import is_gated
    from dynprune.pipeline import apply_recipe, check_calls, check_model
    from dynprune.pipeline.check import CALLS
    from dynprune.pipeline.tasks import task_calls

    from .subject import choose_device

    place = choose_device(device)
    loading: dict[str, Any] = {"weights": weights, "size": size}
    work = None
    if data is None:
        loaded = load_subject(model, followed, device=place, **loading)
    else:
        work = open_work(
            data, (split,), model, followed, terminal, device=place, settle=False, **loading
        )
        loaded = work.loaded
    if followed is not None and recipe is not None and not is_gated(loaded.module):
        calibration = None
        if work is not None:
            count = followed.apply.calibration.images
            calibration = task_calls(work.parts[0], count, device=place)
        apply_recipe(loaded, followed, calibration=calibration)
    calls = [loaded.example]
    if work is not None and work.kind.name == "segmentation":
        prepared = work.reading.preprocessing
        calls = list(check_calls(work.pictures, prepared, loaded.example, device=place))
    elif work is not None:
        calls = list(task_calls(work.parts[0], CALLS, device=place))
    with terminal.progress("check") as step:
        report = check_model(loaded, calls, export=export, progress=step)
    terminal.result(report.to_json(), laws_table(report), summary(report))
    if report.broken:
        names = ", ".join(verdict.name for verdict in report.broken)
        raise LawError(
            f"{report.model} breaks {len(report.broken)} of {len(report.verdicts)} laws that its "
            f"dense form has: {names}"
        )


def laws_table(report: "CheckReport") -> Table:
    """Make a row for every law."""
    return table(
        "law",
        "status",
        "detail",
        rows=[(verdict.name, verdict.status, verdict.detail) for verdict in report.verdicts],
    )


def summary(report: "CheckReport") -> str:
    """Say in a line how many laws hold."""
    counts = Counter(verdict.status for verdict in report.verdicts)
    words = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"{report.model}: {len(report.verdicts)} laws ({words})"
