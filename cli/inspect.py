"""`dynprune inspect`: which neuron groups a model has, and what gating them would do."""

from collections import Counter
from typing import TYPE_CHECKING

from rich.table import Table

from .options import (
    Device,
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
from .subject import find_recipe, load_subject, prepare
from .terminal import Terminal, table

if TYPE_CHECKING:
    from dynprune.pipeline import Inspection


def run(
    model: ModelName,
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
    """Show the neuron groups of a model, the mode in which each would run, and why.

    Changes nothing. Without a recipe every group is a candidate.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    size = parse_size(input_size) if input_size else None
    followed = find_recipe(model, recipe, overrides)
    prepare(threads, followed)
    loaded = load_subject(model, followed, weights=weights, size=size, device=device)
    from dynprune.pipeline import inspect_model

    found = inspect_model(loaded, followed)
    terminal.result(found.to_json(), groups_table(found), summary(found))
    for note in found.notes:
        terminal.note(note)


def groups_table(found: "Inspection") -> Table:
    """Make a row for every group."""
    return table(
        "group",
        "kind",
        ">neurons",
        ">heads",
        "mode",
        "reason",
        rows=[
            (
                plan.group.name,
                plan.group.kind,
                plan.group.neurons,
                plan.group.heads or "",
                plan.mode,
                plan.reason or "",
            )
            for plan in found.plans
        ],
    )


def summary(found: "Inspection") -> str:
    """Say in a line how many groups there are and how they would run."""
    modes = Counter(plan.mode for plan in found.plans)
    counts = ", ".join(f"{count} {mode}" for mode, count in modes.items()) or "none"
    return f"{found.model}: {len(found.plans)} groups ({counts}), {found.trace_seconds:.1f} s"
