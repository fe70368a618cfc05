"""Gate a model in one pass: prove, time, calibrate and spread on gates that are put in once."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dynprune.errors import NoMatchError
from dynprune.example import Example
from dynprune.gate import (
    GateConfig,
    GroupPlan,
    attached,
    gate_model,
    inject,
    remove,
    settle,
)
from dynprune.gate.fixed import only_fixable
from dynprune.graph import Grouping
from dynprune.planning.calibrate import calibrate, start_from_weights
from dynprune.planning.choose import SavedTime, choose_by_latency, refuse_whole
from dynprune.planning.distribute import SavedMacs, Savings, distribute_by_sensitivity

__all__ = ["Aims", "gate_in_one_pass"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Aims:
    """What gating is to reach.

    Attributes:
        saves_time: gate only what saves time here, rather than multiply-adds.
        spreads: give every group a prune ratio of its own, by what it costs the output.
        informed: start from what the dense model does on inputs, where there are any.
        fixes: gate only groups whose neurons can be removed permanently. Causal ones may be, since
            one set for every input sees none of their future.
    """

    saves_time: bool = False
    spreads: bool = False
    informed: bool = True
    fixes: bool = False


def gate_in_one_pass(
    model: nn.Module,
    example: Example,
    grouping: Grouping,
    configs: Mapping[str, GateConfig],
    calls: Sequence[Example] | None,
    aims: Aims,
    *,
    name: str = "the model",
    seed: int = 0,
) -> None:
    """Gate a model, in place; where anything fails the caller takes out what is in it.

    Every candidate is put in once and proven there; one calibration serves the choice of prune
    ratios and the model that is kept. Gates are put in anew, with what they know, only where groups
    turn out not to be gated after all, or where modules are timed, which dense ones take part in.

    Args:
        model: dense, rewritten.
        example: one call of it.
        grouping: its groups.
        configs: group name -> its gate's configuration; groups that are absent are refused.
        calls: inputs from which the gates start; None where there are none.
        aims: what is to be reached.
        name: of the model, for errors.
        seed: of the predictors' first weights.

    Raises:
        NoMatchError: where no group at all can be gated.
    """
    gate_model(model, example, grouping.groups, configs, seed=seed, allow_causal=aims.fixes)
    _demand_gates(model, name)
    if aims.fixes:
        proven = attached(model).plans
        remove(model, untrained=True)
        inject(model, only_fixable(model, proven), seed=seed)
        _demand_gates(model, name)
    savings: Savings | None = None
    spreads = aims.spreads and _has(calls)
    if aims.saves_time:
        plans: Sequence[GroupPlan] = attached(model).plans
        remove(model, untrained=True)
        plans = choose_by_latency(model, example, plans)
        savings = SavedTime(model, example, plans) if spreads else None
        inject(model, plans, seed=seed)
        _demand_gates(model, name)
    start_from_weights(model)
    if calls is not None and (aims.informed or spreads):
        count = calibrate(model, calls)
        logger.info("Calibrated the gates on %d inputs.", count)
    elif aims.informed:
        logger.warning(
            "No data was given: neurons are ordered by their weights and skipped ones stand "
            "at zero. Give --data to calibrate."
        )
    if spreads:
        _spread(model, grouping, savings, calls or (), aims, seed)
        _demand_gates(model, name)
    elif aims.spreads:
        logger.warning(
            "No data was given: every group skips the same share. Give --data to spread."
        )


def _spread(
    model: nn.Module,
    grouping: Grouping,
    savings: Savings | None,
    calls: Sequence[Example],
    aims: Aims,
    seed: int,
) -> None:
    """Give every group its own prune ratio, in place."""
    savings = savings or SavedMacs(grouping.costs, attached(model).plans)
    plans = distribute_by_sensitivity(model, savings, calls)
    plans = refuse_whole(plans) if aims.saves_time else plans
    if aims.informed:
        settle(model, plans, seed=seed)
        return
    remove(model, untrained=True)  # what was learnt served the choice alone
    inject(model, plans, seed=seed)
    start_from_weights(model)


def _has(calls: Sequence[Example] | None) -> bool:
    return calls is not None and len(calls) > 0


def _demand_gates(model: nn.Module, name: str) -> None:
    """Raise where every group was refused."""
    plans = attached(model).plans
    if all(plan.mode == "refused" for plan in plans):
        reasons = sorted({plan.reason or "" for plan in plans})
        causal = any(plan.group.causal and plan.group.kind == "ffn" for plan in plans)
        hint = (
            " With apply.gate.grain: token, each token of a causal model's hidden layers chooses "
            "for itself."
        )
        raise NoMatchError(
            f"No neuron group of {name} can be gated: {'; '.join(reasons[:3])}. "
            f"Run dynprune inspect to see them all.{hint if causal else ''}"
        )
