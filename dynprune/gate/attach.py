"""Gate a model: plan every group, prove it by running it, and put the gates in."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from dynprune.errors import GateError
from dynprune.example import Example
from dynprune.gate.bisection import those_that_run
from dynprune.gate.caches import modules_with_caches
from dynprune.gate.carriers import carry
from dynprune.gate.config import GateConfig
from dynprune.gate.gating import with_activations
from dynprune.gate.inject import Attachment, gates, inject, is_gated, remove
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.padding_trial import padding_faults
from dynprune.gate.plan import GroupPlan, gated
from dynprune.gate.probe import Probe, probe, small_example
from dynprune.gate.settle import forget_means, settle
from dynprune.gate.token_trial import those_per_token
from dynprune.gate.verify import verify
from dynprune.graph.groups import ancestor
from dynprune.graph.neurons import NeuronGroup
from dynprune.host.failures import reraise_ours
from dynprune.host.hooks import hooks_of_calls, why_irreplaceable
from dynprune.host.modes import at_inference
from dynprune.host.outputs import close

__all__ = ["gate_model", "plan_groups"]

logger = logging.getLogger(__name__)

IGNORED = "not among the recipe's targets"


def plan_groups(
    model: nn.Module,
    example: Example,
    groups: Sequence[NeuronGroup],
    configs: Mapping[str, GateConfig],
    *,
    ignored: str = IGNORED,
    allow_causal: bool = False,
    small: Example | None = None,
) -> list[GroupPlan]:
    """Settle the mode of every group by running it; the model is as before afterwards.

    Args:
        model: dense.
        example: one call of it.
        groups: found in it.
        configs: group name -> its gate's configuration; groups that are absent are refused.
        ignored: the reason given for those.
        allow_causal: gate groups whose tokens must not see the future all the same.
        small: what `small_example` returned for the example; found here where None.
    """
    small = _small(model, example, small)
    plans = _candidates(model, small, groups, configs, ignored, allow_causal)
    if not gated(plans.plans):
        return plans.plans
    try:
        return _proven(model, plans, small, seed=0)
    finally:
        if is_gated(model):
            remove(model, untrained=True)


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
    """Put gates into a model, in place, prove each, and leave those that are right.

    Args:
        model: dense.
        example: one call of it.
        groups: found in it.
        configs: group name -> its gate's configuration; groups that are absent are refused.
        seed: of the predictors' first weights.
        allow_causal: gate groups whose tokens must not see the future all the same.

    Returns:
        The record of what was done. Where anything fails the model is as it was.
    """
    small = _small(model, example, None)
    plans = _candidates(model, small, groups, configs, IGNORED, allow_causal)
    if not gated(plans.plans):
        return inject(model, plans.plans, seed=seed)
    try:
        proven = _proven(model, plans, small, seed)
        forget_means(model)
        return settle(model, proven, seed=seed)
    except BaseException:
        if is_gated(model):
            remove(model, untrained=True)
        raise


@dataclass(frozen=True)
class _Candidates:
    """Plans of all groups before any proof, and how often each module runs in a call."""

    plans: list[GroupPlan]
    calls: Mapping[str, int]


def _small(model: nn.Module, example: Example, small: Example | None) -> Example:
    if small is not None:
        return small
    with at_inference(model):
        return small_example(model, example)


def _candidates(
    model: nn.Module,
    small: Example,
    groups: Sequence[NeuronGroup],
    configs: Mapping[str, GateConfig],
    ignored: str,
    allow_causal: bool,
) -> _Candidates:
    """Plan every group as far as the dense model tells."""
    fallback = GateConfig()
    plans = []
    with at_inference(model):
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
        plans = with_activations(model, small, plans)
    return _Candidates(plans, seen.calls)


def _proven(
    model: nn.Module, candidates: _Candidates, example: Example, seed: int
) -> list[GroupPlan]:
    """Put the candidates' gates into the model, in place, and give their plans with proven modes.

    Means of skipped neurons are of no use afterwards.
    """
    plans = candidates.plans
    bare = [replace(plan, products=None) for plan in plans]  # trials narrow products by themselves
    inject(model, bare, seed=seed)  # not on trial: that would put lists of layers back at its end
    try:
        return _verified(model, plans, example, candidates.calls)
    except Exception as error:  # of the host's own code, on layers that it does not know
        reraise_ours(error)
        logger.debug("Verification fails: %s", error, exc_info=True)
    remove(model, untrained=True)
    with at_inference(model):
        plans = those_that_run(model, plans, example)
    inject(model, [replace(plan, products=None) for plan in plans], seed=seed)
    return _verified(model, plans, example, candidates.calls)


def _verified(
    model: nn.Module, plans: Sequence[GroupPlan], example: Example, calls: Mapping[str, int]
) -> list[GroupPlan]:
    with at_inference(model):
        for gate in gates(model).values():
            gate.set_prune_ratio(0.0)
        faults = padding_faults(model, example)
        verified = those_per_token(model, verify(model, plans, example, calls), example)
    return [_worth_it(plan, faults.get(plan.group.name)) for plan in verified]


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
    if plan.config.grain == "token" and group.kind != "ffn":
        return plan.refused(
            "queries, keys and values meet other tokens, so that none chooses alone"
        )
    if group.causal and not allow_causal and plan.config.grain != "token":
        return plan.refused("a causal model's gate would see tokens of the future")
    if (part := _gated_part(model, group)) is not None:
        return plan.refused(f"it is in {part}, which is gated already")
    if (fault := _fault(model, group)) is not None:
        return plan.refused(fault)
    layout = seen.layouts.get(group.name, "its module did not run on the example")
    if isinstance(layout, str):
        return plan.refused(layout)
    plan = replace(plan, layout=layout)
    if group.kind == "qk" and group.carriers and group.slots is None:
        return plan.refused(f"the heads of queries behind {group.carriers[0].module} are not alike")
    partly = group.kind == "qk" or not all(channels.is_whole for channels in group.carriers)
    if group.slots is not None and (group.parameters or (group.carriers and partly)):
        for channels in group.carriers:
            fault = why_irreplaceable(model.get_submodule(channels.module))
            if fault is not None:
                return plan.refused(f"{channels.module} {fault}")
        return replace(plan, products=group.slots)
    if group.parameters:
        why = f"{group.parameters[0]} is used channel by channel outside a layer of its own"
        return replace(plan, mode="scatter", reason=why)
    probe_gate = NeuronGate(
        group.name,
        group.kind,
        1,
        group.neurons,
        group.heads,
        config=replace(plan.config, order="fixed"),
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


def _gated_part(model: nn.Module, group: NeuronGroup) -> str | None:
    """Name the part of a model that has gates of its own and holds a layer of this group."""
    for name in group.modules:
        while name:
            if is_gated(model.get_submodule(name)):
                return name
            name = name.rpartition(".")[0]
    return None


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
