"""Spread what is pruned over the groups by what each costs the output; the sum stays the same."""

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Protocol

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.gate import DynamicLinear, GroupPlan, NeuronGate, attached, gates, kept_count
from dynprune.graph.neurons import MacNode
from dynprune.host.failures import reraise_ours
from dynprune.host.modes import at_inference
from dynprune.host.outputs import close, relative_error, values_of
from dynprune.host.progress import reported
from dynprune.host.replay import record
from dynprune.host.trial import Snapshot
from dynprune.measure.macs import analytic
from dynprune.measure.moments import dense_function

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

SAMPLE = 6
"""Inputs that the effect is measured on."""

SIDE = 256
"""Pixels a side of the middle of a picture that it is measured on, if the model takes that."""


Part = Sequence[GroupPlan]
"""Groups that keep equally many neurons of a segment: a hidden layer, or those of an attention."""


class Savings(Protocol):
    """What pruning parts of a model saves, in a unit of its own."""

    def of(self, part: Part, kept: int) -> float:
        """Return what is saved where a part alone keeps so many neurons of each segment."""

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
        """Return the multiply-adds of the model that a part alone saves."""
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
    model: nn.Module, savings: Savings, calls: Iterable[Example]
) -> list[GroupPlan]:
    r"""Return every group a prune ratio of its own; the model saves what it would with the plans'.

    Each part alone (a hidden layer, or an attention, whose queries, keys and values keep equally
    many) is pruned at a few ratios, and the output y compared with the dense one:

    .. math:: e = \mathrm{mean} \, \|y - y_0\|^2 / \|y_0\|^2

    Effects are taken to add up. What saves most for its effect is pruned first.

    Args:
        model: gated and calibrated; left as it is.
        savings: what pruning saves, and how much is enough.
        calls: inputs; effects are measured on the first few.

    Returns:
        The plans of all its groups at their new ratios. Their proofs hold: they were of random
        choices, whatever the ratio.
    """
    plans = attached(model).plans
    parts = parts_of(plans)
    effects = _effects(model, parts, _sample(model, calls))
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
    return [replace(p, config=configs.get(p.group.name, p.config)) for p in plans]


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
    """Return the choices on the lower convex hull of effect over what is saved."""
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
    """Return the neurons of a segment that a group keeps at its plan's own prune ratio."""
    return kept_count(width_of(plan), plan.config.prune_ratio, plan.config.align)


def _shares(part: Part, kept: int) -> dict[str, float]:
    return {plan.group.name: kept / width_of(plan) for plan in part}


def width_of(plan: GroupPlan) -> int:
    """Return the neurons of a segment: a whole hidden layer, or one attention head."""
    return plan.group.neurons // max(1, plan.group.heads)


def _sizes(plan: GroupPlan) -> list[int]:
    """Return what a segment may keep, all of it first."""
    width, align = width_of(plan), plan.config.align
    ratios = (step / width for step in range(int(LEVELS[-1] * width) + 1))
    return sorted({kept_count(width, ratio, align) for ratio in ratios}, reverse=True)


def _sample(model: nn.Module, calls: Iterable[Example]) -> list[Example]:
    """Take the first few calls; of pictures the middle, if the model runs on that."""
    whole = list(itertools.islice(calls, SAMPLE))

    def middle(leaf: object) -> object:
        if not isinstance(leaf, Tensor) or leaf.dim() != 4 or not leaf.is_floating_point():
            return leaf
        for axis in (2, 3):
            if (beyond := leaf.shape[axis] - SIDE) > 0:
                leaf = leaf.narrow(axis, beyond // 2, SIDE)
        return leaf

    cut = [Example(*pytree.tree_map(middle, (call.args, dict(call.kwargs)))) for call in whole]
    try:
        with at_inference(model):
            cut[0].run(model)
    except Exception as error:  # any model may refuse another size, in its own words
        reraise_ours(error)
        logger.debug("Effects are measured on whole inputs: %s", error)
        return whole
    return cut


@dataclass
class _Curve:
    """How the output moves as one part is pruned.

    Attributes:
        places: shares of a segment that are skipped, rising from 0.
        levels: prune ratios that give them; None for 0.
        errors: sums over the calls.
    """

    places: list[float]
    levels: list[float | None]
    errors: list[float]


def _effects(
    model: nn.Module, parts: Sequence[Part], calls: Sequence[Example]
) -> list[list[tuple[int, float]]]:
    """Return each part's sizes and the effect of each, all other parts whole.

    Whatever runs before a part gives what it gave in the dense run, where that is seen to give the
    same output as long as nothing is pruned.
    """
    by_name = gates(model)
    gated = [[by_name[plan.group.name] for plan in part] for part in parts]
    replays = [True] * len(parts)
    with at_inference(model), dense_function(model):
        curves = [_curve(here) for here in gated]
        own = Snapshot(model)
        for call in reported("sensitivity", calls):
            output, recording = record(model, partial(call.run, model), but=DynamicLinear)
            own.put_back()
            dense = values_of(output)
            for place, (part, here, curve) in enumerate(zip(parts, gated, curves, strict=True)):
                names = {name for plan in part for name in plan.group.modules}
                if call is calls[0]:
                    with recording.until(names):
                        replays[place] = _repeats(model, call, dense)
                    own.put_back()  # not before: it would end the replay
                for level, ratio in enumerate(curve.levels):
                    if ratio is None:
                        continue
                    _set(here, ratio)
                    with recording.until(names if replays[place] else ()):
                        pruned = values_of(call.run(model))
                    own.put_back()
                    curve.errors[level] += relative_error(pruned, dense)
                _set(here, 0.0)
    found = []
    for part, curve in zip(parts, curves, strict=True):
        width, means = width_of(part[0]), [error / len(calls) for error in curve.errors]
        sizes = _sizes(part[0])
        found.append([(k, float(np.interp(1.0 - k / width, curve.places, means))) for k in sizes])
    return found


def _curve(here: Sequence[NeuronGate]) -> _Curve:
    """Find what the gates of a part skip at each level; levels that skip no more are left out."""
    curve = _Curve([0.0], [None], [0.0])
    for level in LEVELS:
        _set(here, level)
        if (place := 1.0 - here[0].keep_ratio) > curve.places[-1]:
            curve.places.append(place)
            curve.levels.append(level)
            curve.errors.append(0.0)
    _set(here, 0.0)
    return curve


def _repeats(model: nn.Module, call: Example, dense: Sequence[Tensor]) -> bool:
    """Whether a call that reuses what was recorded gives the output that it gave."""
    try:
        return close(values_of(call.run(model)), dense)
    except Exception as error:  # the host's own code, where modules of it do not run
        reraise_ours(error)
        logger.debug("What ran before cannot be reused: %s", error)
        return False


def _set(here: Sequence[NeuronGate], ratio: float) -> None:
    for gate in here:
        gate.set_prune_ratio(ratio)
