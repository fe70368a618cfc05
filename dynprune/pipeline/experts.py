"""Which groups of a gated model get experts, and what these are: as a recipe asks, or as pays."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate import DynamicLinear, GroupPlan, attached, gates
from dynprune.gate.plan import gated
from dynprune.gate.probe import small_example
from dynprune.gate.route import Experts
from dynprune.gate.router import Grain
from dynprune.host.modes import at_inference
from dynprune.measure.moments import dense_function
from dynprune.planning.expert_choice import Bought, choose_counts
from dynprune.planning.expert_seats import ExpertSeat
from dynprune.planning.experts import draft_experts, draft_of
from dynprune.planning.grain import settle_grains
from dynprune.recipe.pruning import Gate
from dynprune.rewrite import Rewrite
from dynprune.rewrite.cuts import CHOOSE_EXPERTS

__all__ = ["ExpertPlan", "plan_experts", "record_of_choice"]

USUAL = 4
"""Experts of models that are built to be counted, where inputs would tell how many."""


@dataclass(frozen=True)
class ExpertPlan:
    """What becomes of every gated group.

    Attributes:
        experts: group name -> its experts; the other groups are fixed.
        bought: one a group, with the reason.
        seats: of the groups with experts, whose consumers may be fitted further, in sequence.
    """

    experts: dict[str, Experts] = field(default_factory=dict)
    bought: tuple[Bought, ...] = ()
    seats: tuple[ExpertSeat, ...] = ()

    def settled(self) -> dict[str, Experts]:
        """Return the experts with the consumers that they have by now."""
        return {**self.experts, **{s.plan.group.name: s.draft.experts() for s in self.seats}}


def plan_experts(
    model: nn.Module, example: Example, gate: Gate, calls: Sequence[Example] | None
) -> ExpertPlan:
    """Fit experts to the hidden layers of a model that is to have them.

    Args:
        model: gated in the order ``fixed``; left as it is.
        example: a call of it.
        gate: what the recipe says of the choice.
        calls: inputs that the experts are fitted to; None where the model is built without any, to
            be counted: its experts are then drawn at random.

    Raises:
        UsageError: there are no inputs, and the recipe asks for experts that serve some.
    """
    if calls is None and gate.start == "informed":
        raise UsageError(
            f"apply.gate.choose: {gate.choose} fits experts to what the model does on inputs, and "
            "none were given: add --data, or choose neurons or fixed"
        )
    plans = gated(attached(model).plans)
    with at_inference(model):
        small = small_example(model, example)
    with dense_function(model):
        grains, reasons = settle_grains(model, plans, small, gate.grain)
    uses = Counter(name for plan in plans for name in plan.group.modules)
    for plan in plans:
        shared = [name for name in plan.group.modules if uses[name] > 1]
        if shared and grains.pop(plan.group.name, None) is not None:
            reasons[plan.group.name] = f"{shared[0]} is a layer of another group, too"
    able = [plan for plan in plans if plan.group.name in grains]
    if gate.experts == "auto" and calls is not None:
        bought = choose_counts(model, able, calls, grains, budget=_saved(model, plans))
    else:
        count = USUAL if gate.experts == "auto" else gate.experts
        bought = [_asked(plan, grains[plan.group.name], count) for plan in able]
    counts = {one.name: one.experts for one in bought if one.experts > 1}
    chosen = [plan for plan in able if plan.group.name in counts]
    seats: list[ExpertSeat] = []
    if calls is None:
        experts = {p.group.name: _random(model, p, counts, grains) for p in chosen}
    else:
        drafts = draft_experts(model, chosen, calls, experts=counts, grains=grains)
        experts = {plan.group.name: draft.experts() for plan, draft in drafts.items()}
        seats = [ExpertSeat(plan, d) for plan, d in drafts.items() if len(d.index) > 1]
    alone = {name for name, own in experts.items() if len(own.index) == 1}
    told = {one.name: one for one in bought if one.name not in alone}
    reasons |= dict.fromkeys(alone, "all inputs are alike to its router")
    return ExpertPlan(
        {name: own for name, own in experts.items() if name not in alone},
        tuple(
            told.get(p.group.name)
            or Bought(p.group.name, None, 1, None, None, 0, reasons.get(p.group.name, ""))
            for p in plans
        ),
        tuple(seats),
    )


def record_of_choice(bought: Sequence[Bought]) -> list[Rewrite]:
    """Return the record of what was bought where and why; it rebuilds nothing."""
    if not bought:
        return []
    rows = [one.to_json() for one in bought]
    return [Rewrite(CHOOSE_EXPERTS, "", {"groups": rows}, None, "a table, not a change")]


def _asked(plan: GroupPlan, grain: Grain, count: int) -> Bought:
    own = grain if count > 1 else None
    return Bought(plan.group.name, own, count, None, None, 0, "as the recipe asks")


def _saved(model: nn.Module, plans: Sequence[GroupPlan]) -> int:
    """Return the bytes that one fixed set for each group would take off the dense model."""
    saved = 0.0
    for plan in plans:
        group, gone = plan.group, 1.0 - gates(model)[plan.group.name].keep_ratio
        for channels in (*group.producers, *group.carriers, *group.consumers):
            weight = model.get_submodule(channels.module).get_parameter("weight")
            part = channels.index.numel() / channels.size
            saved += gone * part * weight.numel() * weight.element_size()
    return int(saved)


def _random(
    model: nn.Module, plan: GroupPlan, counts: dict[str, int], grains: dict[str, Grain]
) -> Experts:
    name = plan.group.name
    draft = draft_of(model, plan, experts=1, grain=grains[name])
    random = torch.Generator().manual_seed(0)
    order = torch.rand(counts[name], plan.group.neurons, generator=random)
    index = order.topk(draft.kept).indices.sort(1).values
    first = model.get_submodule(plan.group.producers[0].module)
    assert isinstance(first, DynamicLinear)
    width = first.matrix.shape[1]
    centres = torch.randn(counts[name], width, generator=random)
    return Experts(index, centres, torch.ones(width), {}, grains[name])
