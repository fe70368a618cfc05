"""Gate a model: plan every group, prove it by running it, and put the gates in."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from dynprune.errors import GateError
from dynprune.example import Example
from dynprune.gate.caches import modules_with_caches
from dynprune.gate.carriers import carry
from dynprune.gate.config import GateConfig
from dynprune.gate.inject import Attachment, gates, inject, remove
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.padding_trial import padding_faults
from dynprune.gate.plan import GroupPlan
from dynprune.gate.probe import Probe, probe, small_example
from dynprune.gate.survive import those_that_run
from dynprune.gate.verify import verify
from dynprune.graph.groups import ancestor
from dynprune.graph.neurons import NeuronGroup
from dynprune.host.failures import reraise_ours
from dynprune.host.hooks import hooks_of_calls, why_irreplaceable
from dynprune.host.modes import at_inference
from dynprune.host.outputs import close

__all__ = ["gate_model", "plan_groups"]

logger = logging.getLogger(__name__)


def plan_groups(
    model: nn.Module,
    example: Example,
    groups: Sequence[NeuronGroup],
    configs: Mapping[str, GateConfig],
    *,
    ignored: str = "not among the recipe's targets",
    allow_causal: bool = False,
) -> list[GroupPlan]:
    """Settle the mode of every group by running it; the model is as before afterwards.

    Args:
        model: dense.
        example: one call of it.
        groups: found in it.
        configs: group name -> its gate's configuration; groups that are absent are refused.
        ignored: the reason given for those.
        allow_causal: gate groups whose tokens must not see the future all the same.
    """
    fallback = GateConfig()
    plans = []
    with at_inference(model) as kept:
        small = small_example(model, example)
        seen = probe(model, small, groups)
        cached = modules_with_caches(model, small)
        for group in groups:
            plan = GroupPlan(group, configs.get(group.name, fallback))
            plan = _first_plan(model, plan, seen, configs, ignored, allow_causal)
            if group.heads and ancestor(group) in cached and not allow_causal:
                plan = plan.refused(
                    f"{ancestor(group)} keeps keys and values in a cache, which outlives a choice"
                )
            plans.append(plan)
        try:
            return _verified(model, plans, small, seen)
        except Exception as error:  # of the host's own code, on layers that it does not know
            reraise_ours(error)
            logger.debug("Verification fails: %s", error, exc_info=True)
            kept.put_back()
        return _verified(model, those_that_run(model, plans, small), small, seen)


def _verified(
    model: nn.Module, plans: Sequence[GroupPlan], example: Example, seen: Probe
) -> list[GroupPlan]:
    inject(model, plans)
    try:
        for gate in gates(model).values():
            gate.set_prune_ratio(0.0)
        faults = padding_faults(model, example)
        verified = verify(model, plans, example, seen.calls)
    finally:
        remove(model, untrained=True)
    return [_worth_it(plan, faults.get(plan.group.name)) for plan in verified]


def _worth_it(plan: GroupPlan, fault: str | None) -> GroupPlan:
    """Refuse a verified plan for a fault of its padding, or since it would save nothing."""
    if fault is not None and plan.mode != "refused":
        return plan.refused(fault)
    if plan.mode == "masked" and not plan.config.masked:
        return plan.refused(plan.reason or "its layers cannot be narrowed")
    return plan


def gate_model(
    model: nn.Module,
    example: Example,
    groups: Sequence[NeuronGroup],
    configs: Mapping[str, GateConfig],
    *,
    seed: int = 0,
    allow_causal: bool = False,
) -> Attachment:
    """Find each group's mode and put the gates in, in place.

    Args:
        model: dense.
        example: one call of it.
        groups: found in it.
        configs: group name -> its gate's configuration; groups that are absent are refused.
        seed: of the predictors' first weights.
        allow_causal: gate groups whose tokens must not see the future all the same.
    """
    plans = plan_groups(model, example, groups, configs, allow_causal=allow_causal)
    return inject(model, plans, seed=seed)


def _first_plan(
    model: nn.Module,
    plan: GroupPlan,
    seen: Probe,
    configs: Mapping[str, GateConfig],
    ignored: str,
    allow_causal: bool,
) -> GroupPlan:
    group = plan.group
    if group.reason is not None:
        return plan.refused(_explained(model, group, group.reason))
    if group.name not in configs:
        return plan.refused(ignored)
    if group.causal and not allow_causal:
        return plan.refused("a causal model's gate would see tokens of the future")
    if (fault := _fault(model, group)) is not None:
        return plan.refused(fault)
    layout = seen.layouts.get(group.name, "its module did not run on the example")
    if isinstance(layout, str):
        return plan.refused(layout)
    plan = replace(plan, layout=layout)
    if group.parameters:
        why = f"{group.parameters[0]} is used channel by channel outside a layer of its own"
        return replace(plan, mode="scatter", reason=why)
    probe_gate = NeuronGate(
        group.name, group.kind, 1, group.neurons, group.heads, config=plan.config
    )
    for channels in group.carriers:
        try:
            if not channels.is_whole:
                raise GateError(f"{channels.module} carries these neurons among others")
            carrier = model.get_submodule(channels.module)
            if (fault := why_irreplaceable(carrier)) is not None:
                raise GateError(f"{channels.module} {fault}")
            carry(carrier, probe_gate)
        except GateError as error:
            return replace(plan, mode="scatter", reason=str(error).rstrip("."))
    return plan


def _explained(model: nn.Module, group: NeuronGroup, reason: str) -> str:
    """Return why a group cannot be gated in terms of what its user put on its layers, if so."""
    for name in dict.fromkeys(group.modules):
        module = model.get_submodule(name)
        if (why := why_irreplaceable(module)) is not None:
            return f"{name} {why}"
        if (hooks := hooks_of_calls(module)) and name in reason:
            return f"{reason}, with the hook {', '.join(hooks)} that is registered on it"
    return reason


def _fault(model: nn.Module, group: NeuronGroup) -> str | None:
    """Say which layer of a group cannot be replaced by one that has its weight alone, or None.

    Each runs on random numbers beside what would take its place.
    """
    made = {channels.module for channels in group.producers}
    if both := [c.module for c in group.consumers if c.module in made]:
        return f"{both[0]} both makes and reads these neurons"
    for channels in (*group.producers, *group.consumers):
        name = channels.module
        module = model.get_submodule(name)
        if (why := why_irreplaceable(module)) is not None:
            return f"{name} {why}"
        if not isinstance(getattr(module, "bias", None), nn.Parameter | None):
            return f"{name} keeps its bias elsewhere than in a parameter"
        try:
            plain = DynamicLinear.from_module(module)
        except GateError as failure:
            return f"{name} is no linear layer: {failure}".rstrip(".")
        maps = plain.weight.dim() - 2
        shape = (2, plain.in_features, *[3] * maps) if maps else (2, 3, plain.in_features)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(shape, generator=generator).to(plain.weight)
        try:
            found = module.forward(x)  # its hooks are not asked: they go with its place
        except Exception as failure:  # a foreign layer fails in its own words
            reraise_ours(failure)
            return f"{name} is no linear layer: {failure}".split("\n")[0].rstrip(".")
        if not close([found], [plain(x)]):
            return f"{name} computes something else than its weight and bias say"
    return None
