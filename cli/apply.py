"""`dynprune apply`: from a dense model to a gated one, written as safetensors."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynprune.errors import UsageError

from .inspect import groups_table, summary
from .options import (
    Device,
    DryRun,
    InputSize,
    Json,
    OptionalModelName,
    Output,
    Overrides,
    Overwrite,
    Quiet,
    RecipeName,
    Seed,
    Split,
    Threads,
    Verbose,
    Weights,
    parse_size,
)
from .subject import choose_device, find_recipe, load_subject, prepare, require_recipe
from .terminal import Terminal, table
from .work import keep_beside, open_work

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn


def run(
    output: Output,
    model: OptionalModelName = None,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Calibrate the gates on some of it."),
    ] = None,
    drop_dead: Annotated[
        bool,
        typer.Option(
            "--drop-dead",
            help="First remove hidden neurons that never matter on --data, for good.",
        ),
    ] = False,
    goal: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="macs|latency",
            help="With latency, gate only what pays in PyTorch on this machine.",
        ),
    ] = None,
    split: Split = "train",
    weights: Weights = "pretrained",
    input_size: InputSize = None,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Gate a model as a recipe says, verify every group by running it, and write the result.

    MODEL defaults to the recipe's own. The result needs no recipe and no training code to load.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    size = parse_size(input_size) if input_size else None
    if drop_dead:
        if data is None:
            raise UsageError("--drop-dead finds dead neurons by what they do on data; add --data")
        overrides = [*(overrides or ()), "apply.drop_dead=true"]
    if goal is not None:
        overrides = [*(overrides or ()), f"apply.target={goal}"]
    followed = require_recipe(find_recipe(model, recipe, overrides, seed=seed))
    from .output import MODEL_FILES, check_directory

    target = Path(output)
    check_directory(target, MODEL_FILES, overwrite=overwrite)
    prepare(threads, followed)
    place = choose_device(device)
    loading: dict[str, Any] = {"weights": weights, "size": size}
    if data is None:
        work, loaded = None, load_subject(model, followed, device=place, **loading)
    else:
        work = open_work(
            data, (split,), model, followed, terminal, device=place, settle=False, **loading
        )
        loaded = work.loaded
    from dynprune import pipeline
    from dynprune.gate import is_gated
    from dynprune.models.storage import save
    from dynprune.pipeline.tasks import task_calls

    if is_gated(loaded.module):
        raise UsageError(f"{loaded.name} is gated already; apply a recipe to its dense model")
    if dry_run:
        with terminal.working():
            found = pipeline.inspect_model(loaded, followed)
        terminal.result(
            {"output": str(target), "dry_run": True, **found.to_json()},
            groups_table(found),
            f"{summary(found)}; would write {target}",
        )
        return
    calls = read = None
    if work is not None:
        read, count = work.read, followed.apply.calibration.images
        calls = task_calls(work.parts[0], count, device=place)
    with terminal.working():
        gated = pipeline.apply_recipe(loaded, followed, calibration=calls)
    save(gated, target, overwrite=overwrite)
    if work is not None:
        keep_beside(work, target)
    result = gated_result if is_gated(gated) else fixed_result
    document, views = result(gated, followed.name, target, calibrated=data is not None)
    terminal.result({**document, **(read or {})}, *views)
    if data is not None and is_gated(gated):
        terminal.next(f"dynprune check {target} --data {data}")
    else:
        terminal.next(f"dynprune report flops {target}")


def gated_result(
    model: "nn.Module", recipe: str, target: Path, *, calibrated: bool
) -> tuple[dict[str, object], list[Any]]:
    """Say how many groups are gated, and how many of their neurons are kept."""
    from dynprune.gate import attached, gates

    modes = Counter(plan.mode for plan in attached(model).plans)
    kept = [gate.keep_ratio for gate in gates(model).values()]
    counts = ", ".join(f"{count} {mode}" for mode, count in modes.items())
    document = {
        "output": str(target),
        "recipe": recipe,
        "modes": dict(modes),
        "keep_ratio": sum(kept) / len(kept),
        "calibrated": calibrated,
    }
    line = (
        f"{target}: {sum(modes.values())} groups ({counts}), "
        f"{document['keep_ratio']:.0%} of neurons kept"
    )
    return document, [line]


def fixed_result(
    model: "nn.Module", recipe: str, target: Path, *, calibrated: bool
) -> tuple[dict[str, object], list[Any]]:
    """Say how many groups were fixed or have experts, how narrow they are, and why they have."""
    from dynprune.models import provenance_of
    from dynprune.rewrite.cuts import choice_of_experts, expert_groups, fixed_groups

    records = provenance_of(model).rewrites
    fixed, routed = fixed_groups(records), expert_groups(records)
    shares = [len(group["kept"]) / group["neurons"] for group in fixed]
    shares += [len(group["sets"][0]) / group["neurons"] for group in routed]
    kept = sum(shares) / len(shares)
    modes = {"fixed": len(fixed), "experts": len(routed)}
    modes = {name: count for name, count in modes.items() if count}
    choice = choice_of_experts(records)
    document = {
        "output": str(target),
        "recipe": recipe,
        "modes": modes,
        "keep_ratio": kept,
        "calibrated": calibrated,
        **({"choice": [dict(row) for row in choice]} if choice else {}),
    }
    counts = " and ".join(
        f"{count} groups {'fixed' if name == 'fixed' else 'with experts'}"
        for name, count in modes.items()
    )
    views: list[Any] = [_choice(choice)] if choice else []
    return document, [*views, f"{target}: {counts}, {kept:.0%} of neurons kept"]


def _choice(rows: "Sequence[Mapping[str, Any]]") -> "Table":
    """One row a group: how many experts it got, what they take off its error, and why."""
    return table(
        "group",
        ">experts",
        "chosen by",
        ">error of one set",
        ">error now",
        ">kB more",
        "why",
        rows=[
            (
                row["name"],
                row["experts"],
                row["grain"] or "-",
                *("-" if row[key] is None else f"{row[key]:.4f}" for key in ("error", "left")),
                f"{row['bytes'] / 1000:,.0f}",
                row["reason"],
            )
            for row in rows
        ],
    )
