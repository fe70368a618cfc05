"""Multiply-adds before and after: by formula over the traced graph, and as executed."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dynprune.example import Example
from dynprune.gate import attached, gates, is_gated, recording, remove
from dynprune.gate.expert_record import without_experts
from dynprune.gate.expert_rows import rows_in_place, shared_rows
from dynprune.gate.route import has_experts, routers
from dynprune.graph import RULES, Grouping, Rule
from dynprune.graph.groups import find_groups
from dynprune.graph.neurons import MacNode
from dynprune.host.modes import evaluating
from dynprune.host.trial import trial
from dynprune.measure.executed import Formula, count_executed
from dynprune.models import is_fixed, provenance_of, records_of, set_provenance
from dynprune.rewrite import FoldedDecoder, undo
from dynprune.rewrite.cuts import FIX_NEURONS, PUT_EXPERTS, expert_groups, fixed_groups
from dynprune.rewrite.narrow import DROP_NEURONS
from dynprune.rewrite.widen import widen

__all__ = [
    "ExecutedRange",
    "LayerMacs",
    "MacsReport",
    "analytic",
    "as_published",
    "macs_report",
    "parameter_count",
    "without_gates",
]


@dataclass(frozen=True)
class LayerMacs:
    """Multiply-adds of one module for one call.

    Attributes:
        name: innermost module that runs the products; of a gate, the gate's.
        dense: in the model as published.
        pruned: by formula, after rewrites and with the neurons that every group keeps.
    """

    name: str
    dense: int
    pruned: int


@dataclass(frozen=True)
class ExecutedRange:
    """Multiply-adds that really ran, over several calls.

    Attributes:
        mean: over the calls.
        least: of the cheapest call.
        most: of the costliest call.
    """

    mean: float
    least: int
    most: int


@dataclass(frozen=True)
class MacsReport:
    """The multiply-adds of a model, of its rewritten form and of its pruned form.

    Attributes:
        input: shape of the call's first tensor.
        dense: of the model as published.
        rewritten: of the dense model after its lossless rewrites.
        analytic: of the pruned model by formula, gates included.
        executed: of the pruned model as it ran, gates included.
        dense_parameters: of the model as published.
        pruned_parameters: of the pruned model, without what it keeps only for the way back.
        layers: module by module, in the order in which they run.
        uncounted: operators that ran and have no formula; what they cost is missing everywhere.
        masked: groups that computed all of their neurons in these calls, though they can be
            narrowed: many tokens at once each chose for themselves. Executed counts say so.
    """

    input: tuple[int, ...]
    dense: int
    rewritten: int
    analytic: int
    executed: ExecutedRange
    dense_parameters: int
    pruned_parameters: int
    layers: tuple[LayerMacs, ...]
    uncounted: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``dynprune report flops --json``."""
        ran = self.executed
        return {
            "unit": "MAC",
            "input": list(self.input),
            "dense": self.dense,
            "rewritten": self.rewritten,
            "pruned": {
                "analytic": self.analytic,
                "executed": {"mean": ran.mean, "min": ran.least, "max": ran.most},
            },
            "params": {"dense": self.dense_parameters, "pruned": self.pruned_parameters},
            "layers": [
                {"name": layer.name, "dense": layer.dense, "pruned": layer.pruned}
                for layer in self.layers
            ],
            "uncounted": list(self.uncounted),
            "masked": list(self.masked),
        }


def analytic(
    costs: Iterable[MacNode], keep_ratio: Mapping[str, float], modes: Mapping[str, str]
) -> dict[str, int]:
    """Say what every module costs when each group keeps its share.

    A group that runs in mode ``compact`` scales every product that its neurons meet. In mode
    ``scatter`` they are computed narrow but passed on at full width, so that only the products of
    its own linears shrink. In any other mode nothing is saved.

    Args:
        costs: the products of the traced graph.
        keep_ratio: group -> share of its neurons that is kept, 0 to 1.
        modes: group -> how it runs.

    Returns:
        Innermost module -> multiply-adds, in the order in which they run.
    """
    everywhere = {g: keep for g, keep in keep_ratio.items() if modes.get(g) == "compact"}
    linears_too = everywhere | {g: k for g, k in keep_ratio.items() if modes.get(g) == "scatter"}
    layers: dict[str, float] = {}
    for node in costs:
        kept = linears_too if node.op in ("linear", "conv") else everywhere
        layers[node.module] = layers.get(node.module, 0.0) + node.pruned(kept)
    return {name: round(macs) for name, macs in layers.items()}


def macs_report(
    model: nn.Module,
    example: Example,
    calls: Sequence[Example] = (),
    *,
    handles: Mapping[str, Formula] | None = None,
    rules: Mapping[str, Rule] = RULES,
) -> MacsReport:
    """Count a model's multiply-adds in all three forms.

    Args:
        model: gated or not, rewritten or not; left as it is.
        example: the call that is counted.
        calls: more calls of the same shape with other inputs, to see how much executed counts
            vary; none takes ``example`` alone.
        handles: operator -> formula of what ran, besides dynprune's own; see `count_executed`.
        rules: what each operation does to neurons, by its ATen name; what an operation of one's
            own costs in the traced graph is said by its rule, with `Walk.product`.
    """
    rewritten = without_gates(model)
    dense = as_published(rewritten)
    with evaluating(model), evaluating(rewritten), evaluating(dense), torch.no_grad():
        before = count_executed(dense, example, handles=handles)
        counts = [count_executed(model, call, handles=handles) for call in calls or (example,)]
        ran = [count.total for count in counts]
        grouping = find_groups(rewritten, example, rules=rules)
        plain = is_fixed(model) and not has_experts(model)
        left = find_groups(model, example, rules=rules) if plain else grouping
    found = gates(model)
    plans = attached(model).plans if is_gated(model) else ()
    ratios = {name: gate.keep_ratio for name, gate in found.items()}
    modes: dict[str, str] = {plan.group.name: plan.mode for plan in plans}
    if has_experts(model):
        ratios = _kept_for_good(model, grouping)
        modes = dict.fromkeys(ratios, "compact")
    pruned = analytic(left.costs, ratios, modes)
    masked = _count_gates(model, example, left.costs, pruned)
    pruned |= _routers_macs(model, rewritten, grouping, example)
    names = dict.fromkeys([*before.by_module, *pruned])
    return MacsReport(
        input=tuple(example.tensors[0].shape),
        dense=before.total,
        rewritten=sum(node.macs for node in grouping.costs),
        analytic=sum(pruned.values()),
        executed=ExecutedRange(sum(ran) / len(ran), min(ran), max(ran)),
        dense_parameters=parameter_count(dense),
        pruned_parameters=parameter_count(model),
        layers=tuple(
            LayerMacs(name, before.by_module.get(name, 0), pruned.get(name, 0)) for name in names
        ),
        masked=masked,
        uncounted=tuple(sorted({op for count in (before, *counts) for op in count.uncounted})),
    )


def _count_gates(
    model: nn.Module, example: Example, costs: Iterable[MacNode], pruned: dict[str, int]
) -> tuple[str, ...]:
    """Add what gates cost, in place; return those that were masked since many tokens chose."""
    found = gates(model)
    tokens, masked = _per_token(model, example)
    for name, gate in found.items():
        if gate.macs:
            pruned[f"{name} (gate)"] = gate.macs * tokens.get(name, example.batch)
    whole = {
        plan.group.producers[0].module
        for plan in (attached(model).plans if found else ())
        if plan.group.name in found and found[plan.group.name].reads_projection
    }
    dense = Counter[str]()
    for node in costs:
        dense[node.module] += node.macs
    pruned.update({name: dense[name] for name in whole})  # gate projections are computed in full
    return masked


def _per_token(model: nn.Module, example: Example) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the tokens that chose for themselves, gate by gate, and the gates that were masked."""
    if not any(gate.per_token for gate in gates(model).values()):
        return {}, ()
    with evaluating(model), torch.no_grad(), trial(model), recording() as seen:
        example.run(model)
    tokens = {
        name: sum(len(observation.output.scores) for observation in observations)
        for name, observations in seen.items()
        if observations[0].neurons.per_token
    }
    masked = (name for name in tokens if seen[name][0].selection.execution == "masked")
    able = {name for name, gate in gates(model).items() if gate.verified != "masked"}
    return tokens, tuple(name for name in masked if name in able)


def _kept_for_good(model: nn.Module, grouping: Grouping) -> dict[str, float]:
    """Return the share of each group's dense neurons that fixed sets, or every expert, keep."""
    records = records_of(model)
    kept = {group["name"]: len(group["kept"]) for group in fixed_groups(records)}
    kept |= {group["name"]: len(group["sets"][0]) for group in expert_groups(records)}
    return {g.name: kept[g.name] / g.neurons for g in grouping.groups if g.name in kept}


def _routers_macs(
    model: nn.Module, dense: nn.Module, grouping: Grouping, example: Example
) -> dict[str, int]:
    """Return what the routers cost: once for each instance, or for each token."""
    found = {}
    for name, router in routers(model).items():
        rows = example.batch
        if router.grain == "token":
            producer = next(g for g in grouping.groups if g.name == name).producers[0].module
            macs = sum(node.macs for node in grouping.costs if node.module == producer)
            rows = macs // dense.get_submodule(producer).get_parameter("weight").numel()
        found[f"{name} (router)"] = router.macs * rows
    return found


def without_gates(model: nn.Module) -> nn.Module:
    """Copy a model and take the copy's gates and experts out; rewrites stay.

    Layers of fixed groups get their dense sizes, with weights that repeat, and so do experts.
    """
    bare = without_experts(copy.deepcopy(model))
    if is_fixed(bare):
        known = provenance_of(bare)
        widen(bare, known.rewrites)
        left = tuple(
            record
            for record in known.rewrites
            if record.name not in (DROP_NEURONS, FIX_NEURONS, PUT_EXPERTS)
        )
        set_provenance(bare, replace(known, rewrites=left))
    return remove(bare) if is_gated(bare) else bare


def as_published(model: nn.Module) -> nn.Module:
    """Copy a model without gates into the sizes and the form that its dense weights have."""
    dense = copy.deepcopy(model)
    return undo(widen(dense, records_of(dense)))


def parameter_count(model: nn.Module) -> int:
    """Count the parameters that a model computes with, as files hold them.

    A folded decoder's source keeps its projections for the way back alone; they do not count. Rows
    that several experts share count once.
    """
    idle = {
        parameter
        for module in model.modules()
        if isinstance(module, FoldedDecoder)
        for kept in module.frozen_modules()
        for parameter in kept.parameters()
    }
    with rows_in_place(model, shared_rows(model)):
        return sum(parameter.numel() for parameter in model.parameters() if parameter not in idle)
