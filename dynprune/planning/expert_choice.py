"""How many experts each group gets: what they gain on inputs that fitted none of them, per byte."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from dynprune.example import Example
from dynprune.gate.plan import GroupPlan
from dynprune.gate.router import Grain
from dynprune.planning.experts import draft_of, fit_drafts, run_through, score_dense

__all__ = ["Bought", "choose_counts"]

COUNTS = (1, 2, 4, 8, 16)
"""Numbers of experts that are tried."""

WORTH = 0.03
"""Of the error of one set: what a step to more experts must take off."""

ROWS = 64
"""Tokens that a product should have left for each expert, where tokens choose."""

INPUTS = 4
"""Inputs for each expert, at least, where whole inputs choose."""


@dataclass(frozen=True)
class Bought:
    """What one group got, and why.

    Attributes:
        name: of the group.
        grain: what chooses; None where nothing does.
        experts: M; 1 is one fixed set.
        error: with one set, the mean square of what its consumers make beside what they should, on
            held-back inputs, over the variance of that; None where it was not measured.
        left: the same with ``experts``.
        bytes: that the experts take beyond one set.
        reason: why there are not more.
    """

    name: str
    grain: Grain | None
    experts: int
    error: float | None
    left: float | None
    bytes: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Offer:
    """Experts of one group, and what they cost and leave."""

    experts: int
    bytes: int
    error: float


def choose_counts(
    model: nn.Module,
    plans: Sequence[GroupPlan],
    calls: Sequence[Example],
    grains: Mapping[str, Grain],
    *,
    budget: int,
) -> list[Bought]:
    """Buy experts where they take most error off for their bytes.

    Every number of experts is fitted to three quarters of the calls and measured on the others.

    Args:
        model: gated, or dense.
        plans: groups that can have experts.
        calls: inputs.
        grains: group name -> what would choose.
        budget: bytes that all experts together may take beyond one set for each group.

    Returns:
        One a group, in the groups' order.
    """
    held, fitted = list(calls[3::4]), [c for i, c in enumerate(calls) if i % 4 != 3]
    if not held:
        why = f"{len(calls)} inputs do not tell what a choice is worth"
        return [Bought(p.group.name, None, 1, None, None, 0, why) for p in plans]
    inputs = sum(call.batch for call in fitted)
    offers: dict[str, list[_Offer]] = {plan.group.name: [] for plan in plans}
    most = dict.fromkeys(offers, 1)
    for count in COUNTS:
        tried = [plan for plan in plans if count <= most[plan.group.name]]
        drafts = {
            plan: draft_of(model, plan, experts=count, grain=grains[plan.group.name])
            for plan in tried
        }
        fit_drafts(model, drafts, fitted)
        run_through(model, drafts, held, score_dense)
        for plan, draft in drafts.items():
            name = plan.group.name
            if len(draft.index) == count:
                offers[name].append(_Offer(count, draft.stored, draft.error))
            if count == 1:
                by_token = grains[name] == "token"
                rows = draft.rows // sum(call.batch for call in held)
                most[name] = rows // ROWS if by_token else inputs // INPUTS
    return _buy(offers, grains, budget)


def _buy(
    offers: Mapping[str, Sequence[_Offer]], grains: Mapping[str, Grain], budget: int
) -> list[Bought]:
    """Take the step that gains most for its bytes, again and again, while any is worth it."""
    place, spent = dict.fromkeys(offers, 0), 0
    reasons = dict.fromkeys(offers, "no choice was worth a byte")
    while True:
        steps = []
        for name, own in offers.items():
            now = own[place[name]]
            for further in range(place[name] + 1, len(own)):
                cost, gain = own[further].bytes - now.bytes, now.error - own[further].error
                if gain < WORTH * own[0].error:
                    continue
                if spent + cost > budget:
                    reasons[name] = f"{own[further].experts} would not fit the budget"
                    continue
                steps.append((gain / own[0].error / max(cost, 1), name, further))
        if not steps:
            break
        _, name, further = max(steps)
        spent += offers[name][further].bytes - offers[name][place[name]].bytes
        place[name] = further
        reasons[name] = "more were not worth their bytes"
    return [
        Bought(
            name,
            grains[name] if place[name] else None,
            own[place[name]].experts,
            own[0].error,
            own[place[name]].error,
            own[place[name]].bytes - own[0].bytes,
            reasons[name],
        )
        for name, own in offers.items()
    ]
