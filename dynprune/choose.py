"""Choose what to gate, and how kept counts are rounded, by what it costs on this machine."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from dynprune.example import Example
from dynprune.gate import GroupPlan, NeuronGate, plan_groups
from dynprune.report.breakeven import TimedModule, time_modules

__all__ = ["choose_by_latency"]

logger = logging.getLogger(__name__)

ALIGNS = (8, 16, 32)
"""Roundings that are tried, beside the recipe's own."""

MARGIN = 0.97
"""A gate pays where its module takes at most this share of its dense time: less is noise."""


def choose_by_latency(
    model: nn.Module, example: Example, plans: Sequence[GroupPlan], *, repeats: int = 9
) -> list[GroupPlan]:
    """Refuse every group whose gate would not pay in PyTorch, and round the others' counts best.

    Groups that meet in one module (queries, keys and values) are timed, and chosen, together.

    Args:
        model: dense, on the device that it will run on; left as it is.
        example: one call of it, of the size and batch that it will run on.
        plans: of its groups, as `plan_groups` settled them; each has its own prune ratio.
        repeats: timed runs of every form of every module.

    Returns:
        The plans of all groups, those that stay verified anew at their chosen rounding.
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
    reasons |= {plan.group.name: plan.reason or "" for plan in plans if plan.mode == "refused"}
    chosen = plan_groups(model, example, [plan.group for plan in plans], configs)
    return [
        plan if plan.group.name in configs else plan.refused(reasons[plan.group.name])
        for plan in chosen
    ]


def _round_to(align: int) -> Callable[[NeuronGate], None]:
    def change(gate: NeuronGate) -> None:
        gate.config = replace(gate.config, align=align)
        gate.set_prune_ratio(gate.final_ratio)

    return change


def _described(module: TimedModule) -> str:
    best = min(module.gated_ms.values())
    return f"{module.module} takes {best:.2f} ms gated and {module.dense_ms:.2f} ms dense"
