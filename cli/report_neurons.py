"""`dynprune report neurons`: which neurons are useful, and whether gates choose by the input."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

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
from .subject import choose_device, find_recipe, prepare
from .terminal import Terminal, table
from .work import open_work

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynprune.measure.expert_use import ExpertUseReport
    from dynprune.measure.neurons import NeuronReport


def run(
    model: ModelName,
    data: DataDirectory,
    split: Split = "val",
    images: Annotated[
        int | None,
        typer.Option("--images", metavar="N", min=1, help="Pictures to run; default: all."),
    ] = None,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    fail_if: FailIf = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Tell every gated neuron's importance and firing rate, and how far kept sets differ by image.

    Type I is always useful, II depends on the input, III is never useful. An overlap of 1 says
    that every image keeps the same neurons: such a gate is not dynamic. Pictures whose names
    share what stands before the first _ count as one world. Of a model with experts or fixed sets
    the types are the plan: I is in every set, II in some, III in none.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    bounds = parse_bounds(fail_if)
    followed = find_recipe(model, recipe, overrides)
    prepare(threads, followed)
    from dynprune.measure.calls import TaskCalls
    from dynprune.measure.expert_use import expert_use
    from dynprune.measure.neurons import neuron_report
    from dynprune.measure.overlap import domains_of
    from dynprune.models import is_fixed

    place = choose_device(device)
    work = open_work(data, (split,), model, followed, terminal, device=place, settle=False)
    calls = TaskCalls(work.parts[0], images, device=place)
    worlds = domains_of(map(Path, calls.names)) if work.kind.pictures else ()
    if is_fixed(work.loaded.module):
        with terminal.progress("neurons") as step:
            used = expert_use(work.loaded.module, calls, progress=step)
        record = {**used.to_json(), **work.read}
        terminal.result(record, _experts(used), "", _types(used.counts, used.images))
        check_bounds(bounds, record)
        return
    with terminal.progress("neurons") as step:
        found = neuron_report(work.loaded.module, calls, worlds=worlds, progress=step)
    record = {**found.to_json(), **work.read}
    views: list[Any] = [_groups(found)]
    if found.worlds:
        views += ["", _worlds(found)]
    terminal.result(record, *views, "", _summary(found, f"{split} of {data}"))
    check_bounds(bounds, record)


def _experts(used: "ExpertUseReport") -> Table:
    """One row a group of a model with experts or fixed sets."""
    columns = ("group", "kind", ">neurons", ">kept", ">I", ">II", ">III", "chosen by", "use")
    rows = [
        (
            group.name,
            group.kind,
            group.neurons,
            group.kept,
            *group.types.values(),
            group.grain or "-",
            " ".join(f"{share:.0%}" for share in group.use),
        )
        for group in used.groups
    ]
    return table(*columns, rows=rows)


def _types(counts: "Mapping[str, int]", images: int) -> str:
    types = "  ".join(f"{name} {count}" for name, count in counts.items())
    return f"neurons by type: {types}  images {images}"


def _groups(found: "NeuronReport") -> Table:
    """One row a group."""
    told = bool(found.worlds)
    columns = ["group", "kind", ">neurons", ">kept", ">I", ">II", ">III", ">always", ">never"]
    columns += [">overlap", *([">same world", ">other world"] if told else [])]
    rows = []
    for group in found.groups:
        lap = group.overlap
        shares = (None,) * 3 if lap is None else (lap.all, lap.same_world, lap.different_worlds)
        rows.append(
            (
                group.name,
                group.kind,
                group.neurons,
                group.kept,
                *group.counts.values(),
                group.always,
                group.never,
                *(_two_digits(share) for share in shares[: 3 if told else 1]),
            )
        )
    return table(*columns, rows=rows)


def _worlds(found: "NeuronReport") -> Table:
    """Mean overlap of every two worlds."""
    return table(
        "world",
        "with",
        ">overlap",
        rows=[(pair.first, pair.second, _two_digits(pair.overlap)) for pair in found.world_overlap],
    )


def _summary(found: "NeuronReport", where: str) -> str:
    types = "  ".join(f"{name} {count}" for name, count in found.counts.items())
    lap = "-" if found.overlap is None else f"{found.overlap.all:.3f}"
    return f"neurons by type: {types}  mean overlap {lap}  images {found.images}  ({where})"


def _two_digits(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f}"
