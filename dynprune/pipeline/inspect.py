"""What gating a model would do: its groups and how each would run; nothing is changed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynprune.gate import GateConfig, GroupPlan, attached, is_gated, plan_groups
from dynprune.gate.probe import small_example
from dynprune.graph import RULES, Rule, find_groups
from dynprune.host.modes import at_inference
from dynprune.models import LoadedModel, records_of
from dynprune.pipeline.arguments import gate_configs
from dynprune.recipe import Recipe
from dynprune.rewrite import UNPACK_ATTENTION, Rewrite, count_made, rewrite, undo
from dynprune.rewrite.cuts import expert_groups, fixed_groups

__all__ = ["Inspection", "inspect_model"]

UNGUIDED = (UNPACK_ATTENTION,)
"""Rewrites of a model that is looked at without a recipe: those that open groups to gates."""


@dataclass(frozen=True)
class Inspection:
    """What `inspect_model` found, and what gating would do.

    Attributes:
        model: its name.
        plans: every neuron group with the mode in which it would run.
        trace_seconds: time that tracing and grouping took.
        notes: what a user should know of how the model was rewritten and traced.
    """

    model: str
    plans: tuple[GroupPlan, ...]
    trace_seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document of ``dynprune inspect --json``."""
        return {
            "model": self.model,
            "groups": [
                {
                    "name": plan.group.name,
                    "kind": plan.group.kind,
                    "producers": [c.module for c in plan.group.producers],
                    "consumers": [c.module for c in plan.group.consumers],
                    "carriers": [c.module for c in plan.group.carriers],
                    "neurons": plan.group.neurons,
                    "heads": plan.group.heads,
                    "mode": plan.mode,
                    "reason": plan.reason,
                }
                for plan in self.plans
            ],
            "trace_seconds": self.trace_seconds,
            "notes": list(self.notes),
        }


def inspect_model(
    loaded: LoadedModel, recipe: Recipe | None = None, *, rules: Mapping[str, Rule] = RULES
) -> Inspection:
    """Find the neuron groups of a model and settle how each would run; changes nothing.

    Args:
        loaded: the model; a gated one tells what was done to it.
        recipe: whose targets and rewrites count; every group is a target where None.
        rules: what each operation does to neurons, by its ATen name.

    Raises:
        NoMatchError: where a target or ignore pattern of the recipe matches nothing.
    """
    model = loaded.module
    if is_gated(model):
        return Inspection(loaded.name, attached(model).plans, 0.0, ("the model is gated",))
    fixed, routed = fixed_groups(records_of(model)), expert_groups(records_of(model))
    made = count_made(model)
    try:
        # Nothing is kept, so the proof may run on less.
        with at_inference(model):
            small = small_example(model, loaded.example)
        records = rewrite(model, small, UNGUIDED if recipe is None else recipe.rewrite)
        grouping = find_groups(model, loaded.example, rules=rules)
        if recipe is None:
            configs = {g.name: GateConfig() for g in grouping.groups}
        else:
            configs = gate_configs(recipe, grouping.groups)
        plans = plan_groups(model, loaded.example, grouping.groups, configs, small=small)
    finally:
        undo(model, made)
    notes = (
        *_notes_of_fixed(fixed),
        *_notes_of_experts(routed),
        *_notes_of(records),
        *grouping.notes,
    )
    return Inspection(loaded.name, tuple(plans), grouping.seconds, notes)


def _notes_of_fixed(groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say which neurons were removed permanently."""
    if groups:
        kept = sum(len(group["kept"]) for group in groups)
        every = sum(group["neurons"] for group in groups)
        yield (
            f"{len(groups)} groups are fixed: {kept} of {every} neurons are left, the others were "
            "removed from their layers for good"
        )


def _notes_of_experts(groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say which groups have experts, and how many."""
    for group in groups:
        sets = group["sets"]
        shared = len(set.intersection(*map(set, sets)))
        every = len(set.union(*map(set, sets)))
        yield (
            f"{group['name']} has {len(sets)} experts of {len(sets[0])} of {group['neurons']} "
            f"neurons, chosen by each {group['grain']}: {shared} are in every one (type I), "
            f"{every - shared} in some (II), {group['neurons'] - every} in none (III)"
        )


def _notes_of(records: Sequence[Rewrite]) -> Iterator[str]:
    """Say which modules stand in another form than the user wrote them in, or why they do not."""
    records = [record for record in records if record.name == UNPACK_ATTENTION and record.module]
    made = [record.module for record in records if record.reason is None]
    if made:
        names = ", ".join(made[:3]) + (f" and {len(made) - 3} more" if len(made) > 3 else "")
        yield (
            f"rewrite {UNPACK_ATTENTION} gives {names} a linear each for queries, keys and values; "
            "a recipe must name it, as recipe any does"
        )
    for record in records:
        if record.reason is not None:
            yield f"rewrite {UNPACK_ATTENTION} leaves {record.module} as it is: {record.reason}"
