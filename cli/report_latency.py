"""`dynprune report latency`: milliseconds of the dense, the rewritten and the pruned model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dynprune.errors import UsageError

from .bounds import check_bounds, parse_bounds
from .options import (
    FailIf,
    InputSize,
    Json,
    ModelName,
    Overrides,
    Quiet,
    RecipeName,
    Threads,
    Verbose,
    Weights,
    parse_size,
)
from .subject import find_recipe, load_subject, prepare, require_recipe
from .terminal import Terminal, table

if TYPE_CHECKING:
    from dynprune.measure.breakeven import BreakEven
    from dynprune.measure.latency import LatencyReport
    from dynprune.models import LoadedModel


def run(
    model: ModelName,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    weights: Weights = "pretrained",
    input_size: InputSize = None,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Instances of one call.")
    ] = 1,
    engines: Annotated[
        str,
        typer.Option(
            "--engines",
            metavar="A,B",
            help="Of torch, onnxruntime, openvino, onnxruntime-int8, openvino-bf16, openvino-int8.",
        ),
    ] = "torch",
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", min=1, help="Timed runs of every form.")
    ] = 15,
    breakeven: Annotated[
        bool, typer.Option("--break-even", help="Time every module's groups at several ratios.")
    ] = False,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw the medians, .png or .svg.")
    ] = None,
    fail_if: FailIf = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Time a model in every engine: interleaved runs, medians, on this machine's processor.

    Dense is the model as published, rewritten has the lossless rewrites alone, pruned has the gates
    too. Only ratios within one such series mean anything. A dense MODEL is gated by the recipe
    first.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    bounds = parse_bounds(fail_if)
    size = parse_size(input_size) if input_size else None
    followed = find_recipe(model, recipe, overrides)
    prepare(threads, followed)
    loaded = load_subject(model, followed, weights=weights, size=size, batch=batch, device="cpu")
    from dynprune.gate import is_gated
    from dynprune.models import is_fixed
    from dynprune.pipeline import apply_recipe

    if not (is_gated(loaded.module) or is_fixed(loaded.module)):
        apply_recipe(loaded, require_recipe(followed))
    found = time_engines(loaded, engines, runs=runs, threads=threads)
    for note in found.notes:
        terminal.note(note)
    record = found.to_json()
    shown = [_medians(found)]
    if breakeven:
        from dynprune.measure.breakeven import break_even

        modules = break_even(loaded.module, loaded.example)
        record["break_even"] = [module.to_json() for module in modules]
        shown.append(_crossings(modules))
    if plot is not None:
        from dynprune.measure.latency import plot_latency

        plot_latency(found, Path(plot))
        record["plot"] = plot
    terminal.result(record, *shown)
    check_bounds(bounds, record)


def time_engines(
    loaded: "LoadedModel", engines: str, *, runs: int = 15, threads: int | None = None
) -> "LatencyReport":
    """Time a model in the engines of a comma-separated list.

    Raises:
        UsageError: one is unknown, or its package is not installed.
    """
    try:
        from dynprune.export.engines import latency_report

        return latency_report(
            loaded.module,
            loaded.example,
            [name for name in engines.split(",") if name],
            runs=runs,
            threads=threads or 0,
        )
    except ImportError as error:
        raise UsageError(
            f"an engine needs the package {error.name}: pip install 'dynprune[int8]'"
        ) from error


def _medians(found: "LatencyReport") -> Table:
    shape = "x".join(map(str, found.input))
    rows = []
    for name, engine in found.engines.items():
        times = [f"{engine.median_ms(form):.1f}" for form in ("dense", "rewritten", "pruned")]
        rows.append([name, *times, f"{engine.speedup:.2f}", f"{engine.efficiency:.2f}"])
    return table(
        "engine",
        ">dense ms",
        ">rewritten ms",
        ">pruned ms",
        ">speedup",
        ">efficiency",
        rows=rows,
        title=f"{shape}, {found.threads} threads, median of {found.runs} interleaved runs",
    )


def _crossings(modules: "list[BreakEven]") -> Table:
    rows = [
        [
            m.module,
            f"{m.dense_ms:.2f}",
            "never" if m.prune_ratio is None else f"{m.prune_ratio:.2f}",
        ]
        for m in modules
    ]
    return table("module", ">without gates ms", ">pays from a prune ratio of", rows=rows)
