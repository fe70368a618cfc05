"""Put experts into a model: several neuron sets for a hidden layer, chosen for every input."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dynprune.errors import GateError, UsageError
from dynprune.gate.experts import ExpertDepthwiseConv, ExpertLinear, ExpertRouter, Routing
from dynprune.gate.layout import lend_attributes, weight_layout
from dynprune.gate.plan import GroupPlan
from dynprune.host.replacing import replace_everywhere

__all__ = ["Experts", "Reader", "put_experts", "why_not_experts"]


@dataclass(frozen=True, eq=False)
class Reader:
    """What one consumer of a group computes with each expert.

    Attributes:
        weight: (M, out, K) columns of the kept neurons, refitted or not.
        bias: (M, out), the means of skipped neurons in it.
    """

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Experts:
    """The experts of one group.

    Attributes:
        index: (M, K) neurons of each, ascending.
        centres: (M, features) of the router's choice by nearest centre.
        scale: (features,) by which pooled inputs are multiplied before distances are taken.
        readers: consumer's module -> its weights; the dense columns where it is absent.
    """

    index: Tensor
    centres: Tensor
    scale: Tensor
    readers: Mapping[str, Reader]


def why_not_experts(model: nn.Module, plan: GroupPlan) -> str | None:
    """Say why a group cannot have experts, or None."""
    group = plan.group
    if plan.mode != "compact":
        return plan.reason
    if group.kind != "ffn" or group.heads:
        return "only hidden layers have experts; the neurons of heads are fixed"
    if group.causal:
        return "its router would see tokens of the future"
    if plan.layout.folded:
        return "its rows are parts of inputs, so that no router sees a whole one"
    places = (*group.producers, *group.carriers, *group.consumers)
    if not all(channels.is_whole for channels in places):
        return "its neurons are a part of a layer"
    for channels in group.carriers:
        if not isinstance(model.get_submodule(channels.module), _ConvNd):
            return f"{channels.module} is no depthwise convolution"
    return None


@torch.no_grad()
def put_experts(
    model: nn.Module, plans: Sequence[GroupPlan], experts: Mapping[str, Experts]
) -> Callable[[], None]:
    """Replace the layers of hidden groups by experts, in place.

    Args:
        model: without gates.
        plans: the groups, of mode ``compact``.
        experts: group name -> its experts.

    Returns:
        A function that puts the dense layers back.

    Raises:
        GateError: a group cannot have experts; the model is untouched.
        UsageError: experts do not fit their group; the model is untouched.
    """
    chosen = {plan.group.name: plan for plan in plans if plan.group.name in experts}
    for name, own in experts.items():
        if name not in chosen:
            raise UsageError(f"no group is called {name!r}")
        if (why := why_not_experts(model, chosen[name])) is not None:
            raise GateError(f"{name} cannot have experts: {why}.")
        if own.index.dim() != 2 or int(own.index.max()) >= chosen[name].group.neurons:
            raise UsageError(f"the experts of {name} name neurons beyond its own")
    new = {}
    for name, plan in chosen.items():
        new.update(_layers(model, plan, experts[name]))
    old = {model.get_submodule(name): module for name, module in new.items()}
    replace_everywhere(model, old)
    return lambda: replace_everywhere(model, {module: source for source, module in old.items()})


def _layers(model: nn.Module, plan: GroupPlan, experts: Experts) -> dict[str, nn.Module]:
    group, routing, made = plan.group, Routing(), dict[str, nn.Module]()
    for position, channels in enumerate(group.producers):
        source = model.get_submodule(channels.module)
        matrix, bias, pointwise = _read(source)
        index = experts.index.to(matrix.device)
        router = _router(experts, matrix) if position == 0 else None
        made[channels.module] = ExpertLinear(
            matrix[index],
            None if bias is None else bias[index],
            routing=routing,
            layout=plan.layout,
            pointwise=pointwise,
            router=router,
        )
        lend_attributes(source, made[channels.module])
    for channels in group.carriers:
        carrier = model.get_submodule(channels.module)
        assert isinstance(carrier, _ConvNd)
        made[channels.module] = ExpertDepthwiseConv(carrier, experts.index, routing=routing)
    for channels in group.consumers:
        source = model.get_submodule(channels.module)
        matrix, bias, pointwise = _read(source)
        reader = experts.readers.get(channels.module)
        if reader is None:
            weight = matrix.t()[experts.index.to(matrix.device)].transpose(1, 2)
            stack = None if bias is None else bias.expand(len(weight), -1)
        else:
            weight, stack = reader.weight.to(matrix), reader.bias.to(matrix)
        made[channels.module] = ExpertLinear(
            weight, stack, routing=routing, layout=plan.layout, pointwise=pointwise
        )
        lend_attributes(source, made[channels.module])
    for name, module in made.items():
        module.train(model.get_submodule(name).training)
    return made


def _read(source: nn.Module) -> tuple[Tensor, Tensor | None, bool]:
    """Return a layer's matrix (out, in), its bias, and whether channels are its input's axis 1."""
    layout = weight_layout(source)
    weight, bias = source.get_parameter("weight"), source._parameters.get("bias")
    matrix = weight.t() if layout == "transposed" else weight.flatten(1)
    return matrix.detach(), None if bias is None else bias.detach(), layout == "pointwise"


def _router(experts: Experts, like: Tensor) -> ExpertRouter:
    """Turn nearest centres into a linear choice: -|s (x - c)|^2 without what all have in common."""
    count, features = experts.centres.shape
    # Distances are differences of large numbers: half precision cannot tell near centres apart.
    precise = torch.promote_types(like.dtype, torch.float32)
    router = ExpertRouter(features, count, device=like.device, dtype=precise)
    square = experts.scale.double().square()
    centres = experts.centres.double()
    router.weight.copy_(centres * square)
    router.bias.copy_(-0.5 * (centres.square() * square).sum(1))
    return router
