"""Experts as plain values that files hold: written down, put in again, and back to dense sizes."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dynprune.gate.config import GateConfig
from dynprune.gate.experts import ExpertDepthwiseConv, ExpertLinear
from dynprune.gate.instances import InstanceLayout
from dynprune.gate.layout import weight_layout
from dynprune.gate.plan import GroupPlan
from dynprune.gate.route import ATTRIBUTE, Experts, expert_attachment, has_experts, put_experts
from dynprune.gate.router import Grain
from dynprune.graph.neurons import Channels, NeuronGroup
from dynprune.host.fused_paths import open_fused_paths
from dynprune.host.replacing import replace_everywhere
from dynprune.rewrite.cuts import PUT_EXPERTS
from dynprune.rewrite.record import Rewrite

__all__ = ["experts_again", "record_of_experts", "without_experts"]


def record_of_experts(model: nn.Module) -> Rewrite:
    """Return the record from which `experts_again` builds a model's experts.

    Raises:
        UsageError: where the model has none.
    """
    record = expert_attachment(model)
    groups = [
        {
            "name": plan.group.name,
            "kind": plan.group.kind,
            "neurons": plan.group.neurons,
            "sets": record.sets[plan.group.name].tolist(),
            "grain": record.grains[plan.group.name],
            "layout": asdict(plan.layout),
            "causal": plan.group.causal,
            "producers": [channels.module for channels in plan.group.producers],
            "carriers": [channels.module for channels in plan.group.carriers],
            "consumers": [channels.module for channels in plan.group.consumers],
        }
        for plan in record.plans
    ]
    return Rewrite(PUT_EXPERTS, "", {"groups": groups}, None)


def experts_again(model: nn.Module, records: Sequence[Rewrite]) -> nn.Module:
    """Put experts into a model, in place, as records say; their values are not in the records.

    Args:
        model: with layers of dense sizes in these groups.
        records: of all its rewrites.

    Returns:
        The model.

    Raises:
        ValueError: a record does not fit; KeyError, TypeError or AttributeError likewise.
    """
    for record in records:
        if record.name != PUT_EXPERTS or record.reason is not None:
            continue
        plans, experts = [], {}
        for group in record.details["groups"]:
            plan = _plan(group)
            plans.append(plan)
            experts[plan.group.name] = _experts(model, plan.group, group)
        put_experts(model, plans, experts)
    return model


def _plan(group: Mapping[str, Any]) -> GroupPlan:
    neurons = int(group["neurons"])

    def channels(names: Sequence[str]) -> tuple[Channels, ...]:
        return tuple(Channels(str(n), torch.arange(neurons)[:, None], neurons) for n in names)

    return GroupPlan(
        NeuronGroup(
            name=str(group["name"]),
            kind=group["kind"],
            producers=channels(group["producers"]),
            carriers=channels(group["carriers"]),
            consumers=channels(group["consumers"]),
            neurons=neurons,
            causal=bool(group["causal"]),
        ),
        GateConfig(),
        layout=InstanceLayout(**group["layout"]),
    )


def _experts(model: nn.Module, group: NeuronGroup, record: Mapping[str, Any]) -> Experts:
    sets = record["sets"]
    index = torch.tensor(sets, dtype=torch.int64)
    for channels in group.producers:
        found = model.get_submodule(channels.module).get_parameter("weight").shape
        if group.neurons not in found[:2]:
            raise ValueError(f"{channels.module} has no {group.neurons} neurons")
    if index.dim() != 2 or not 0 <= int(index.min()) <= int(index.max()) < group.neurons:
        raise ValueError(f"the sets of {group.name} name neurons beyond its {group.neurons}")
    if record["grain"] not in get_args(Grain):
        raise ValueError(f"grain {record['grain']!r} is not one of {', '.join(get_args(Grain))}")
    first = model.get_submodule(group.producers[0].module)
    weight = first.get_parameter("weight")
    features = weight.shape[0 if weight_layout(first) == "transposed" else 1]
    zeros = torch.zeros(len(index), features)
    return Experts(index, zeros, torch.ones(features), {}, grain=record["grain"])


@torch.no_grad()
def without_experts(model: nn.Module) -> nn.Module:
    """Put plain layers of dense sizes into the experts' places, in place.

    Every neuron has the weights that the first expert with it has, and zeros where none has it: the
    layers cost what the dense ones cost, and are no experts; what they compute is not the dense
    model.

    Returns:
        The model; as it was where it has no experts.
    """
    if not has_experts(model):
        return model
    record = expert_attachment(model)
    new: dict[nn.Module, nn.Module] = {}
    for plan in record.plans:
        index = record.sets[plan.group.name]
        for name in plan.group.modules:
            module, blank = record.replacements[name], record.blanks[name]
            assert isinstance(module, ExpertLinear | ExpertDepthwiseConv)
            reads = name in {channels.module for channels in plan.group.consumers}
            new[module] = _dense(module, blank, index.to(module.weight.device), reads)
    replace_everywhere(model, new)
    open_fused_paths(record.closed)
    record.scope.close()
    delattr(model, ATTRIBUTE)
    return model


def _dense(
    module: ExpertLinear | ExpertDepthwiseConv, blank: nn.Module, index: Tensor, reads: bool
) -> nn.Module:
    weight = module.weight
    dense = copy.deepcopy(blank).to_empty(device=weight.device).to(weight.dtype)
    for parameter in dense.parameters():
        parameter.zero_()
    matrix: Tensor = dense.get_parameter("weight")
    if not isinstance(module, ExpertDepthwiseConv) and weight_layout(dense) == "transposed":
        matrix = matrix.t()
    bias = dense._parameters.get("bias")
    for m in reversed(range(len(weight))):
        if reads:
            matrix[:, index[m]] = weight[m].view(len(weight[m]), -1, *[1] * (matrix.dim() - 2))
        else:
            matrix[index[m]] = weight[m].view(len(weight[m]), *matrix.shape[1:])
        if bias is not None and module.bias is not None:
            bias[slice(None) if reads else index[m]] = module.bias[m]
    return dense.train(module.training)
