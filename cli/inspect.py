"""`dynprune inspect`: which neuron groups a model has, and what gating them would do."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
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
from .rows import merged_names, pattern_of
from .subject import find_recipe, load_subject, prepare
from .terminal import Terminal, table

if TYPE_CHECKING:
    from dynprune.gate import GroupPlan
    from dynprune.pipeline import Inspection


def run(
    model: ModelName,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    weights: Weights = "pretrained",
    input_size: InputSize = None,
    every: Annotated[
        bool, typer.Option("--all", help="Show every group, not a row for those that are alike.")
    ] = False,
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

    with terminal.working():
        found = inspect_model(loaded, followed)
    terminal.result(found.to_json(), groups_table(found, every=every), summary(found))
    for note in found.notes:
        terminal.note(note)
    if found.trace_seconds and any(plan.mode != "refused" for plan in found.plans):
        chosen = recipe or (model if followed is not None else "any")
        terminal.next(f"dynprune apply {model} --recipe {chosen} --data DATA -o DIR")


def groups_table(found: "Inspection", *, every: bool = False) -> Table:
    """Make a row for the groups that are alike but for a number, or for every group."""
    rows: dict[object, list[GroupPlan]] = {}
    for plan in found.plans:
        kind, name = _kind_of_row(plan), plan.group.name
        rows.setdefault((name if every else pattern_of(name), *kind), []).append(plan)
    return table(
        "group",
        ">groups",
        "kind",
        ">neurons",
        ">heads",
        "mode",
        "reason",
        rows=[
            (
                name,
                len(own),
                plans[0].group.kind,
                plans[0].group.neurons,
                plans[0].group.heads or "",
                plans[0].mode,
                _reason(plans),
            )
            for plans in rows.values()
            for name, own in merged_names(plan.group.name for plan in plans)
        ],
    )


def _kind_of_row(plan: "GroupPlan") -> tuple[object, ...]:
    """Return what groups that share a row have in common, besides their pattern of name."""
    group = plan.group
    return group.kind, group.neurons, group.heads, plan.mode, pattern_of(plan.reason or "")


def _reason(plans: "list[GroupPlan]") -> str:
    """Return the reason that groups share; numbers in which theirs differ are left out."""
    reasons = {plan.reason or "" for plan in plans}
    return reasons.pop() if len(reasons) == 1 else pattern_of(plans[0].reason or "")


def summary(found: "Inspection") -> str:
    """Say in a line how many groups there are and how they would run."""
    modes = Counter(plan.mode for plan in found.plans)
    counts = ", ".join(f"{count} {mode}" for mode, count in modes.items()) or "none"
    return f"{found.model}: {len(found.plans)} groups ({counts}), {found.trace_seconds:.1f} s"
