"""Bring a model's gates in line with new plans of its groups; they keep what they know."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from dynprune.gate.attention import narrow
from dynprune.gate.compensation import fold_means
from dynprune.gate.inject import Attachment, attached, gates, inject, remove
from dynprune.gate.plan import GroupPlan, gated

__all__ = ["forget_means", "settle"]


def settle(model: nn.Module, plans: Sequence[GroupPlan], *, seed: int = 0) -> Attachment:
    """Let the gates of a model be as these plans say, in place.

    Where the same groups are gated in the same layers, only settings change. Otherwise the gates
    are put in anew, and each that stays keeps its parameters, order and means.

    Args:
        model: gated.
        plans: of the groups that it was gated by.
        seed: of predictors that are made anew.

    Returns:
        The record that `attached` returns from now on.
    """
    record = attached(model)
    before = {plan.group.name: plan for plan in gated(record.plans)}
    now = {plan.group.name: plan for plan in gated(plans)}
    if before.keys() != now.keys() or not all(_alike(before[n], now[n]) for n in now):
        known = {name: gate.state_dict() for name, gate in gates(model).items()}
        remove(model, untrained=True)
        record = inject(model, plans, seed=seed)
        for name, gate in gates(model).items():
            if name in known:
                gate.load_state_dict(known[name])
        fold_means(model)
        return record
    record.plans = tuple(plans)
    by_name = gates(model)
    for name, plan in now.items():
        gate = by_name[name]
        gate.narrow_heads(())
        gate.config = plan.config
        gate.verified = plan.execution
        gate.final_ratio = plan.config.prune_ratio
        gate.set_prune_ratio(gate.final_ratio)
    for heads in {plan.heads for plan in now.values() if plan.heads}:
        narrow(model, heads, [by_name[n] for n, plan in now.items() if plan.heads == heads])
    return record


def _alike(before: GroupPlan, now: GroupPlan) -> bool:
    """Whether two plans of a group are built of the same layers and predictors."""
    config = replace(now.config, prune_ratio=before.config.prune_ratio, align=before.config.align)
    carried = (before.mode == "compact") == (now.mode == "compact")
    hooked = (before.products is None) == (now.products is None)
    return carried and hooked and config == before.config and before.layout == now.layout


def forget_means(model: nn.Module) -> None:
    """Set the means of all gates to zero, as they were when they were made, in place."""
    with torch.no_grad():
        for gate in gates(model).values():
            if gate.mean is not None:
                gate.mean.zero_()
    fold_means(model)
