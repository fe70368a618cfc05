"""Spread what is pruned over the groups by what each costs the output; the sum stays the same."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.gate import (
    GroupPlan,
    NeuronGate,
    gates,
    inject,
    kept_count,
    plan_groups,
    remove,
    set_execution,
    set_prune_ratio,
)
from dynprune.graph.neurons import MacNode
from dynprune.host.modes import at_inference
from dynprune.host.trial import Snapshot
from dynprune.measure.macs import analytic
from dynprune.planning.calibrate import calibrate, start_from_weights

__all__ = [
    "Choice",
    "Part",
    "SavedMacs",
    "Savings",
    "distribute_by_sensitivity",
    "parts_of",
    "spread",
    "usual_size",
    "width_of",
]

logger = logging.getLogger(__name__)

LEVELS = (0.25, 0.5, 0.75, 0.9)
"""Prune ratios at which each part's effect is measured; between them it is interpolated, beyond the
last no part goes."""

SAMPLE = 8
"""Inputs that the effect is measured on."""


Part = Sequence[GroupPlan]
"""Groups that keep equally many neurons of a segment: a hidden layer, or those of an attention."""


class Savings(Protocol):
    """What pruning parts of a model saves, in a unit of its own."""

    def of(self, part: Part, kept: int) -> float:
        """Give what is saved where a part alone keeps so many neurons of each segment."""

    def is_enough(self, chosen: Sequence[tuple[Part, int]]) -> bool:
        """Whether parts of these sizes save together what the model is to save."""


class SavedMacs:
    """Multiply-adds: as many as the plans' own prune ratios save.

    Args:
        costs: products of the model's graph.
        plans: of its groups.
    """

    def __init__(self, costs: Sequence[MacNode], plans: Sequence[GroupPlan]) -> None:
        gated = [plan for plan in plans if plan.mode != "refused"]
        self._costs = costs
        self._modes = {plan.group.name: plan.mode for plan in plans}
        self._whole = {plan.group.name: 1.0 for plan in gated}
        usual = {plan.group.name: usual_size(plan) / width_of(plan) for plan in gated}
        self._dense, self._budget = self._total(self._whole), self._total(usual)

    def of(self, part: Part, kept: int) -> float:
        """Give the multiply-adds of the model that a part alone saves."""
        return self._dense - self._total({**self._whole, **_shares(part, kept)})

    def is_enough(self, chosen: Sequence[tuple[Part, int]]) -> bool:
        """Whether the model executes as few as at the plans' own ratios."""
        keep = dict(self._whole)
        for part, kept in chosen:
            keep.update(_shares(part, kept))
        return self._total(keep) <= self._budget

    def _total(self, keep: Mapping[str, float]) -> int:
        return sum(analytic(self._costs, keep, self._modes).values())


@dataclass(frozen=True)
class Choice:
    """A number of neurons that a part of the model may keep.

    Attributes:
        kept: neurons of each segment.
        saved: multiply-adds, or time.
        effect: on the output.
    """

    kept: int
    saved: float
    effect: float


def distribute_by_sensitivity(
    model: nn.Module,
    example: Example,
    plans: Sequence[GroupPlan],
    savings: Savings,
    calls: Iterable[Example],
) -> list[GroupPlan]:
    r"""Give every group a prune ratio of its own; the model saves what it would with the plans'.

    Each part alone (a hidden layer, or an attention, whose queries, keys and values keep equally
    many) is pruned at a few ratios, and the output y compared with the dense one:

    .. math:: e = \mathrm{mean} \, \|y - y_0\|^2 / \|y_0\|^2

    Effects are taken to add up. What saves most for its effect is pruned first.

    Args:
        model: dense; left as it is.
        example: one call of it.
        plans: of its groups, as `plan_groups` settled them.
        savings: what pruning saves, and how much is enough.
        calls: inputs; gates are calibrated on them all, effects measured on the first few.

    Returns:
        The plans of all groups, verified anew at their ratios; those given, without any calls.
    """
    calls = list(calls)
    if not calls:
        logger.warning(
            "No data was given: every group skips the same share. Give --data to spread."
        )
        return list(plans)
    parts = parts_of(plans)
    inject(model, plans)
    try:
        start_from_weights(model)
        calibrate(model, calls)
        effects = _effects(model, parts, calls[:SAMPLE])
    finally:
        remove(model, untrained=True)
    options = [
        [Choice(kept, savings.of(part, kept), effect) for kept, effect in found]
        for part, found in zip(parts, effects, strict=True)
    ]
    chosen = spread(
        options,
        lambda choices: savings.is_enough(list(zip(parts, (c.kept for c in choices), strict=True))),
    )
    configs = {}
    for part, choice in zip(parts, chosen, strict=True):
        for plan in part:
            ratio = 1.0 - choice.kept / width_of(plan)
            configs[plan.group.name] = replace(plan.config, prune_ratio=ratio)
            logger.info("%s: prune ratio %.2f", plan.group.name, ratio)
    new = plan_groups(model, example, [plan.group for plan in plans], configs)
    return [b if b.group.name in configs else a for a, b in zip(plans, new, strict=True)]


def spread(
    options: Sequence[Sequence[Choice]], is_enough: Callable[[Sequence[Choice]], bool]
) -> list[Choice]:
    """Choose one size for every part, so that enough is saved and the effects add up to little.

    Steps go along the lower convex hull of each part's effects, the cheapest first: where savings
    add up, that is the best choice for what is saved in the end.

    Args:
        options: each part's, from the one that saves nothing to the one that saves most.
        is_enough: whether a choice for every part saves enough.

    Returns:
        A choice for every part: the first that is enough, or else the one that saves most.

    Example:
        >>> cheap = [Choice(8, 0, 0.0), Choice(4, 10, 0.1), Choice(2, 15, 0.2)]
        >>> dear = [Choice(8, 0, 0.0), Choice(4, 10, 1.0)]
        >>> chosen = spread([cheap, dear], lambda chosen: sum(c.saved for c in chosen) >= 15)
        >>> [choice.kept for choice in chosen]
        [2, 8]
    """
    steps = []
    for part, choices in enumerate(options):
        for a, b in pairwise(_hull(choices)):
            steps.append((_slope(a, b), part, b))
    chosen = [choices[0] for choices in options]
    for _, part, choice in sorted(steps, key=lambda step: step[0]):
        if is_enough(chosen):
            break
        chosen[part] = choice
    return chosen


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """Give the choices on the lower convex hull of effect over what is saved."""
    hull: list[Choice] = []
    for new in choices:
        if hull and new.saved <= hull[-1].saved:
            continue
        while len(hull) > 1 and _slope(hull[-2], new) < _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(new)
    return hull


def _slope(a: Choice, b: Choice) -> float:
    return (b.effect - a.effect) / (b.saved - a.saved)


def parts_of(plans: Sequence[GroupPlan]) -> list[Part]:
    """Put the groups that keep equally many neurons of a head together."""
    parts: dict[object, list[GroupPlan]] = {}
    for plan in plans:
        if plan.mode != "refused":
            parts.setdefault(plan.heads or plan.group.name, []).append(plan)
    return list(parts.values())


def usual_size(plan: GroupPlan) -> int:
    """Give the neurons of a segment that a group keeps at its plan's own prune ratio."""
    return kept_count(width_of(plan), plan.config.prune_ratio, plan.config.align)


def _shares(part: Part, kept: int) -> dict[str, float]:
    return {plan.group.name: kept / width_of(plan) for plan in part}


def width_of(plan: GroupPlan) -> int:
    """Give the neurons of a segment: a whole hidden layer, or one attention head."""
    return plan.group.neurons // max(1, plan.group.heads)


def _sizes(plan: GroupPlan) -> list[int]:
    """Give what a segment may keep, all of it first."""
    width, align = width_of(plan), plan.config.align
    ratios = (step / width for step in range(int(LEVELS[-1] * width) + 1))
    return sorted({kept_count(width, ratio, align) for ratio in ratios}, reverse=True)


def _effects(
    model: nn.Module, parts: Sequence[Part], calls: Sequence[Example]
) -> list[list[tuple[int, float]]]:
    """Give each part's sizes and the effect of each, all other parts whole."""
    by_name = gates(model)
    found = []
    with at_inference(model):

        def outputs() -> list[list[Tensor]]:
            return [_output(model, call, own) for call in calls]

        set_execution(model, "masked")
        set_prune_ratio(model, 0.0)
        own = Snapshot(model)
        dense = outputs()
        for part in parts:
            here = [by_name[plan.group.name] for plan in part]
            places, values = [0.0], [0.0]
            for level in LEVELS:
                _set(here, level)
                if (place := 1.0 - here[0].keep_ratio) > places[-1]:
                    errors = [_error(a, b) for a, b in zip(outputs(), dense, strict=True)]
                    places.append(place)
                    values.append(sum(errors) / len(errors))
            _set(here, 0.0)
            width = width_of(part[0])
            found.append(
                [(k, float(np.interp(1.0 - k / width, places, values))) for k in _sizes(part[0])]
            )
    return found


def _output(model: nn.Module, call: Example, own: Snapshot) -> list[Tensor]:
    """Run one call from the model's own state."""
    try:
        return _tensors(call.run(model))
    finally:
        own.put_back()


def _set(here: Sequence[NeuronGate], ratio: float) -> None:
    for gate in here:
        gate.set_prune_ratio(ratio)


def _error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Give the squared difference over the squared norm, all tensors of an output together."""
    error = sum(float((a - b).square().sum()) for a, b in zip(found, wanted, strict=True))
    return error / max(sum(float(b.square().sum()) for b in wanted), 1e-30)


def _tensors(output: object) -> list[Tensor]:
    leaves = pytree.tree_leaves(output)
    return [x.double() for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
