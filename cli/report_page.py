"""`dynprune report all`: everything that proves a model, on one self-contained page."""

import json as json_format
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dynprune.errors import InputError, OutputError

from .bounds import check_bounds, parse_bounds
from .options import (
    DataDirectory,
    Device,
    FailIf,
    Json,
    ModelName,
    Overrides,
    Overwrite,
    Quiet,
    RecipeName,
    Split,
    Threads,
    Verbose,
)
from .report_latency import time_engines
from .subject import choose_device, find_recipe, prepare
from .terminal import Step, Terminal
from .work import open_work

_TIMES = ("dense_ms", "rewritten_ms", "pruned_ms", "speedup", "efficiency")


def run(
    model: ModelName,
    data: DataDirectory,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The page, such as report.html.")
    ],
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", metavar="MODEL", help="The dense model to stand beside it."),
    ] = None,
    split: Split = "val",
    images: Annotated[
        int,
        typer.Option(
            "--images",
            metavar="N",
            min=1,
            help="Pictures whose neurons and MACs are counted; scores are of all.",
        ),
    ] = 32,
    shown: Annotated[
        int, typer.Option("--shown", metavar="N", min=0, help="Pictures to show.")
    ] = 3,
    engines: Annotated[
        str,
        typer.Option(
            "--engines",
            metavar="A,B",
            help="Time these, as report latency does, such as torch,openvino-int8; '' none.",
        ),
    ] = "torch",
    latency: Annotated[
        str | None,
        typer.Option(
            "--latency",
            metavar="FILE",
            help="Show what `report latency --json` gave, rather than time anew.",
        ),
    ] = None,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    fail_if: FailIf = None,
    device: Device = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a gated model and write the proof as one HTML page that needs no network.

    MACs dense, rewritten, pruned and executed; milliseconds; scores beside the teacher's; MACs by
    layer; neuron types; how far kept sets differ; samples as the models see them; the recipe, the
    environment and the commands.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    bounds = parse_bounds(fail_if)
    target = Path(output)
    _check(target, overwrite=overwrite)
    times = None if latency is None else _read_latency(Path(latency))
    followed = find_recipe(model, recipe, overrides)
    prepare(threads, followed)
    from dynprune.gate import is_gated
    from dynprune.report.page import render, write_page
    from dynprune.report.results import gather, gather_task

    place = choose_device(device)
    work = open_work(data, (split,), model, followed, terminal, device=place, teacher=teacher)
    student, dense = work.loaded, work.teacher
    if times is None and engines and is_gated(student.module):
        if place == "cpu":
            terminal.note(f"timing in {engines}")
            times = time_engines(student, engines, threads=threads).to_json()
        else:
            terminal.note(f"engines run on the CPU and the model is on {place}: no times")
    with terminal.progress("report") as step:
        counts: dict[str, Any] = {"teacher": dense, "images": images, "shown": shown}
        counts |= {"device": place, "progress": _timed_by_part(step)}
        if work.kind.name == "segmentation":
            rules = work.reading.preprocessing
            found = gather(student, work.pictures, preprocessing=rules, **counts)
        else:
            found = gather_task(student, work.parts[0], data, **counts)
    this = {"this page": shlex.join(["dynprune", *sys.argv[1:]])}
    found = replace(found, split=split, latency=times, commands={**found.commands, **this})
    write_page(target, render(found))
    record = {"output": str(target), **found.to_json(), **work.read}
    terminal.result(record, f"{target}: {target.stat().st_size / 1e6:.1f} MB, one page")
    check_bounds(bounds, record)


def _timed_by_part(step: Step) -> Step:
    """Say of each part how long the rest of it takes: the parts are not alike."""
    started: dict[str, float] = {}
    before = time.monotonic()

    def timed(done: int, total: int, *, part: str) -> None:
        nonlocal before
        elapsed = time.monotonic() - started.setdefault(part, before)
        before = time.monotonic()
        step(done, total, part=part, seconds_left=elapsed / done * (total - done))

    return timed


def _read_latency(path: Path) -> dict[str, Any]:
    """Read what `report latency --json` wrote.

    Raises:
        InputError: it is something else.
    """
    try:
        record = json_format.loads(path.read_text(encoding="utf-8"))
        engines = {
            str(name): {key: float(times[key]) for key in _TIMES}
            for name, times in record["engines"].items()
        }
        rest = {key: record[key] for key in ("device", "threads", "batch", "runs")}
        rest["notes"] = [str(note) for note in record.get("notes", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not what dynprune report latency --json writes: "
            f"{type(error).__name__}: {error}"
        ) from error
    return {**rest, "engines": engines}


def _check(target: Path, *, overwrite: bool) -> None:
    """Refuse a file that may not be written, before any work is done."""
    if target.is_dir():
        raise OutputError(f"{target} is a directory; name a file, such as {target}/report.html")
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists; choose another --output, or give --overwrite")
