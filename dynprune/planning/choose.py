"""Choose what to gate, how much, and how kept counts are rounded, by what it costs here."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from dynprune.example import Example
from dynprune.gate import GateConfig, GroupPlan, NeuronGate
from dynprune.measure.breakeven import TimedModule, at_ratios, time_modules
from dynprune.planning.distribute import LEVELS, Part, parts_of, usual_size, width_of

__all__ = ["SavedTime", "choose_by_latency", "refuse_whole"]

logger = logging.getLogger(__name__)

ALIGNS = (8, 16, 32)
"""Roundings that are tried, beside the recipe's own."""

MARGIN = 0.97
"""A gate pays where its module takes at most this share of its dense time: less is noise."""


def choose_by_latency(
    model: nn.Module, example: Example, plans: Sequence[GroupPlan], *, repeats: int = 5
) -> list[GroupPlan]:
    """Refuse every group whose gate would not pay in PyTorch, and round the others' counts best.

    Groups that meet in one module (queries, keys and values) are timed, and chosen, together.

    Args:
        model: dense, on the device that it will run on; left as it is.
        example: one call of it, of the size and batch that it will run on.
        plans: of its groups, as `plan_groups` settled them; each has its own prune ratio.
        repeats: timed runs of every form of every module.

    Returns:
        The plans of all groups. Their proofs hold: they were of random choices, which a rounding
        does not make special.
    """
    aligns = sorted({*ALIGNS, *(plan.config.align for plan in plans)})
    timed = time_modules(model, plans, example, {str(a): _round_to(a) for a in aligns}, repeats)
    reasons: dict[str, str] = {}
    configs = {}
    for module in timed:
        form = min(module.gated_ms, key=module.gated_ms.__getitem__)
        pays = module.gated_ms[form] <= MARGIN * module.dense_ms
        logger.info("%s: %s", module.module, _described(module))
        for plan in module.plans:
            if pays:
                configs[plan.group.name] = replace(plan.config, align=int(form))
            else:
                reasons[plan.group.name] = f"its gate would not pay here: {_described(module)}"
    return [_chosen(plan, configs, reasons) for plan in plans]


def _chosen(
    plan: GroupPlan, configs: Mapping[str, GateConfig], reasons: Mapping[str, str]
) -> GroupPlan:
    name = plan.group.name
    if name in configs:
        return replace(plan, config=configs[name])
    return plan.refused(reasons[name]) if name in reasons else plan


class SavedTime:
    """Milliseconds in PyTorch on this machine: as many as the plans' own prune ratios save.

    Each part is timed alone at a few ratios; between them time is interpolated, and savings of
    parts are taken to add up. A part that keeps every neuron has no gate, and saves nothing.

    Args:
        model: dense, on the device that it will run on; left as it is.
        example: one call of it, of the size and batch that it will run on.
        plans: of its groups.
        repeats: timed runs of every form of every module.
    """

    def __init__(
        self, model: nn.Module, example: Example, plans: Sequence[GroupPlan], *, repeats: int = 5
    ) -> None:
        forms = at_ratios(LEVELS)
        parts = parts_of(plans)
        self._curves = {}
        for part in parts:
            timed = time_modules(model, part, example, forms, repeats)
            points = {width_of(part[0]): 0.0}
            for form in forms:
                kept = round(timed[0].kept[form] * width_of(part[0]))
                points[kept] = sum(module.dense_ms - module.gated_ms[form] for module in timed)
            self._curves[part[0].group.name] = sorted(points.items())
        self._budget = self._sum([(part, usual_size(part[0])) for part in parts])

    def of(self, part: Part, kept: int) -> float:
        """Return the milliseconds that a part saves; negative where its gate costs more."""
        sizes, saved = zip(*self._curves[part[0].group.name], strict=True)
        return float(np.interp(kept, sizes, saved))

    def is_enough(self, chosen: Sequence[tuple[Part, int]]) -> bool:
        """Whether the parts save as much time as at the plans' own ratios."""
        return self._sum(chosen) >= self._budget

    def _sum(self, chosen: Sequence[tuple[Part, int]]) -> float:
        return sum(self.of(part, kept) for part, kept in chosen)


def refuse_whole(plans: Sequence[GroupPlan]) -> list[GroupPlan]:
    """Refuse the groups that would keep every neuron: a gate there would cost time for nothing."""
    return [
        plan.refused("others save this time at less cost to the output")
        if plan.mode != "refused" and usual_size(plan) == width_of(plan)
        else plan
        for plan in plans
    ]


def _round_to(align: int) -> Callable[[NeuronGate], None]:
    def change(gate: NeuronGate) -> None:
        gate.config = replace(gate.config, align=align)
        gate.set_prune_ratio(gate.final_ratio)

    return change


def _described(module: TimedModule) -> str:
    best = min(module.gated_ms.values())
    return f"{module.module} takes {best:.2f} ms gated and {module.dense_ms:.2f} ms dense"
