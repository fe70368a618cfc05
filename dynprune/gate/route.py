"""Put experts into a model: several neuron sets for a hidden layer, chosen for every input."""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dynprune.errors import GateError, UsageError
from dynprune.gate.call import GatedNeurons, Scope
from dynprune.gate.carriers import DynamicDepthwiseConv
from dynprune.gate.experts import ExpertDepthwiseConv, ExpertLinear
from dynprune.gate.inject import is_gated, whole_group_modules
from dynprune.gate.layout import lend_attributes, weight_layout
from dynprune.gate.plan import GroupPlan
from dynprune.gate.router import ExpertRouter, Grain
from dynprune.host.fused_paths import ClosedPath, close_fused_paths, open_fused_paths
from dynprune.host.hooks import hand_over, without_hooks
from dynprune.host.replacing import replace_everywhere

__all__ = [
    "ExpertAttachment",
    "Experts",
    "Reader",
    "expert_attachment",
    "has_experts",
    "put_experts",
    "routers",
    "why_not_experts",
]

ATTRIBUTE = "_dynprune_experts"


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
        scale: (features,) by which inputs are multiplied before distances are taken.
        readers: consumer's module -> its weights; the dense columns where it is absent.
        grain: whether input instances choose, or tokens.
        sharpness: factor of the router's scores, which changes no choice: with it their spread over
            the experts is about 1, so that the probabilities of all have gradients.
    """

    index: Tensor
    centres: Tensor
    scale: Tensor
    readers: Mapping[str, Reader]
    grain: Grain = "instance"
    sharpness: float = 1.0


@dataclass
class ExpertAttachment:
    """What `put_experts` did to a model, kept on it.

    Attributes:
        plans: of the groups that have experts.
        sets: group name -> (M, K) neurons of each expert.
        grains: group name -> what chooses.
        blanks: the layers that were replaced, by name, without their values.
        replacements: what stands in their places.
        scope: notes the calls of the model's modules.
        closed: torch's fused layers that would read past the experts.
    """

    plans: tuple[GroupPlan, ...]
    sets: dict[str, Tensor]
    grains: dict[str, Grain]
    blanks: dict[str, nn.Module] = field(default_factory=dict)
    replacements: dict[str, nn.Module] = field(default_factory=dict)
    scope: Scope = field(default_factory=Scope)
    closed: tuple[ClosedPath, ...] = ()


def has_experts(model: nn.Module) -> bool:
    """Whether `put_experts` has been at work on the model."""
    return isinstance(vars(model).get(ATTRIBUTE), ExpertAttachment)


def expert_attachment(model: nn.Module) -> ExpertAttachment:
    """Return the record of the experts that were put into a model.

    Raises:
        UsageError: where it has none.
    """
    record = vars(model).get(ATTRIBUTE)
    if not isinstance(record, ExpertAttachment):
        raise UsageError("The model has no experts: apply a recipe with apply.gate.choose: experts")
    return record


def routers(model: nn.Module) -> dict[str, ExpertRouter]:
    """Return the routers of a model's own experts by their group's name; none where it has none."""
    record = vars(model).get(ATTRIBUTE)
    scope = record.scope if isinstance(record, ExpertAttachment) else None
    found = (m for m in model.modules() if isinstance(m, ExpertRouter))
    return {m.members.name: m for m in found if m.members.scope is scope}


def why_not_experts(model: nn.Module, plan: GroupPlan, grain: Grain = "instance") -> str | None:
    """Say why a group cannot have experts, or None.

    Args:
        model: that holds the group.
        plan: as it was proven.
        grain: what is to choose.
    """
    group = plan.group
    if plan.mode != "compact":
        return plan.reason
    if group.kind != "ffn" or group.heads:
        return "only hidden layers have experts; the neurons of heads are fixed"
    if group.causal and grain == "instance":
        return "its router would see tokens of the future"
    if (name := _shared(model, group.modules)) is not None:
        return f"{name} shares its weight with another layer"
    places = (*group.producers, *group.carriers, *group.consumers)
    if not all(channels.is_whole for channels in places):
        return "its neurons are a part of a layer"
    if grain == "token" and group.carriers:
        return f"tokens meet in {group.carriers[0].module}, so that each cannot choose for itself"
    for channels in group.carriers:
        carrier = model.get_submodule(channels.module)
        if not isinstance(carrier, _ConvNd | DynamicDepthwiseConv):
            return f"{channels.module} is no depthwise convolution"
    return None


def _shared(model: nn.Module, names: Sequence[str]) -> str | None:
    """Name the layer, among some, a parameter of which another module has too; or None."""
    owners = Counter(
        id(p) for m in model.modules() for p in m._parameters.values() if p is not None
    )
    for name in names:
        parameters = model.get_submodule(name)._parameters.values()
        if any(p is not None and owners[id(p)] > 1 for p in parameters):
            return name
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
    if has_experts(model) or is_gated(model):
        raise UsageError("The model has gates or experts already: load its dense form.")
    chosen = {plan.group.name: plan for plan in plans if plan.group.name in experts}
    taken: dict[str, str] = {}
    for name, own in experts.items():
        if name not in chosen:
            raise UsageError(f"no group is called {name!r}")
        if (why := why_not_experts(model, chosen[name], own.grain)) is not None:
            raise GateError(f"{name} cannot have experts: {why}.")
        if own.index.dim() != 2 or int(own.index.max()) >= chosen[name].group.neurons:
            raise UsageError(f"the experts of {name} name neurons beyond its own")
        for module in chosen[name].group.modules:
            if (other := taken.setdefault(module, name)) != name:
                raise GateError(f"{name} and {other} cannot both have experts: {module} is in both")
    record = ExpertAttachment(
        tuple(chosen.values()),
        {name: own.index.cpu() for name, own in experts.items()},
        {name: own.grain for name, own in experts.items()},
    )
    for name, plan in chosen.items():
        record.replacements.update(_layers(model, plan, experts[name], record.scope))
    old = {model.get_submodule(name): module for name, module in record.replacements.items()}
    record.blanks = {name: _blank(model.get_submodule(name)) for name in record.replacements}
    for source, layer in old.items():
        hand_over(source, layer)
    replace_everywhere(model, old)
    record.closed = close_fused_paths(model, old.values())
    for path in whole_group_modules(record.plans):
        record.scope.watch(model.get_submodule(path), path)
    setattr(model, ATTRIBUTE, record)
    return partial(_put_back, model, {module: source for source, module in old.items()})


def _put_back(model: nn.Module, back: Mapping[nn.Module, nn.Module]) -> None:
    record = expert_attachment(model)
    replace_everywhere(model, back)
    for module, source in back.items():
        hand_over(module, source)
    open_fused_paths(record.closed)
    record.scope.close()
    delattr(model, ATTRIBUTE)


def _blank(source: nn.Module) -> nn.Module:
    """Copy a layer without its values and hooks."""
    empty: dict[int, Tensor] = {id(b): b.to("meta") for b in source.buffers()}
    for parameter in source.parameters():
        empty[id(parameter)] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
    return without_hooks(copy.deepcopy(source, empty))


def _layers(
    model: nn.Module, plan: GroupPlan, experts: Experts, scope: Scope
) -> dict[str, nn.Module]:
    group, made = plan.group, dict[str, nn.Module]()
    members = GatedNeurons(group.name, group.kind, group.neurons, 1, plan.layout, scope)
    for position, channels in enumerate(group.producers):
        source = model.get_submodule(channels.module)
        matrix, bias, pointwise = _read(source)
        index = experts.index.to(matrix.device)
        made[channels.module] = ExpertLinear(
            matrix[index],
            None if bias is None else bias[index],
            members=members,
            pointwise=pointwise,
            router=_router(experts, matrix, members) if position == 0 else None,
        )
    for channels in group.carriers:
        carrier = model.get_submodule(channels.module)
        assert isinstance(carrier, _ConvNd)
        made[channels.module] = ExpertDepthwiseConv(carrier, experts.index, members=members)
    for channels in group.consumers:
        source = model.get_submodule(channels.module)
        matrix, bias, pointwise = _read(source)
        reader = experts.readers.get(channels.module)
        if reader is None:
            weight = matrix.t()[experts.index.to(matrix.device)].transpose(1, 2)
            stack = matrix.new_zeros(matrix.shape[0]) if bias is None else bias
            stack = stack.expand(len(weight), -1)
        else:
            weight, stack = reader.weight.to(matrix), reader.bias.to(matrix)
        made[channels.module] = ExpertLinear(
            weight, stack, members=members, pointwise=pointwise, scaled=True
        )
    for name, module in made.items():
        source = model.get_submodule(name)
        lend_attributes(source, module)
        module.train(source.training)
        learns = source.get_parameter("weight").requires_grad
        module.requires_grad_(learns)
    return made


def _read(source: nn.Module) -> tuple[Tensor, Tensor | None, bool]:
    """Return a layer's matrix (out, in), its bias, and whether channels are its input's axis 1."""
    layout = weight_layout(source)
    weight, bias = source.get_parameter("weight"), source._parameters.get("bias")
    matrix = weight.t() if layout == "transposed" else weight.flatten(1)
    return matrix.detach(), None if bias is None else bias.detach(), layout == "pointwise"


def _router(experts: Experts, like: Tensor, members: GatedNeurons) -> ExpertRouter:
    """Turn nearest centres into a linear choice: -|s (x - c)|^2 without what all have in common."""
    count, features = experts.centres.shape
    # Distances are differences of large numbers: half precision cannot tell near centres apart.
    precise = torch.promote_types(like.dtype, torch.float32)
    router = ExpertRouter(
        members, features, count, grain=experts.grain, device=like.device, dtype=precise
    )
    square = experts.scale.double().square()
    centres = experts.centres.double()
    router.weight.copy_(experts.sharpness * (centres * square))
    router.bias.copy_(experts.sharpness * (-0.5 * (centres.square() * square).sum(1)))
    return router
