"""Put gated layers into a model, all of them or none, and take them out again."""

from collections import Counter
from collections.abc import Sequence

from torch import nn

from dynprune.errors import GateError, UsageError
from dynprune.gate.attachment import (
    ATTRIBUTE,
    Attachment,
    attached,
    gate_parameters,
    gates,
    is_gated,
)
from dynprune.gate.attention import narrow
from dynprune.gate.call import Scope
from dynprune.gate.carriers import carry
from dynprune.gate.compensation import settle_means
from dynprune.gate.hiding import HidingCarrier
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.plan import GroupPlan, gated
from dynprune.gate.products import hosts_of, narrow_products
from dynprune.gate.slots import Site
from dynprune.graph.groups import ancestor
from dynprune.graph.neurons import Channels
from dynprune.host.chance import seeded
from dynprune.host.fused_paths import close_fused_paths, open_fused_paths
from dynprune.host.hooks import hand_over
from dynprune.host.replacing import replace_everywhere
from dynprune.host.strides import laid_out, owns_its_memory
from dynprune.rewrite.made import count_made

__all__ = [
    "Attachment",
    "attached",
    "gate_parameters",
    "gates",
    "inject",
    "is_gated",
    "remove",
    "whole_group_modules",
]


def inject(model: nn.Module, plans: Sequence[GroupPlan], *, seed: int = 0) -> Attachment:
    """Replace the layers of every planned group by gated ones, in place.

    Everything is built and checked first; where that fails the model is as it was. Weights are
    shared with the layers that are replaced, so that `remove` loses nothing.

    Args:
        model: that holds the groups; it must not be gated yet.
        plans: the groups; those whose mode is ``refused`` are recorded and left alone.
        seed: of the predictors' first weights.

    Returns:
        The record that `attached` returns from now on.

    Raises:
        UsageError: where the model is gated already.
        GateError: where a group's layers are not what its record says.
    """
    if is_gated(model):
        raise UsageError("The model is gated already: call dynprune.restore first.")
    record = Attachment(tuple(plans), made=count_made(model))
    with seeded(seed):
        replacements = _build(model, gated(plans), record.scope)
    record.originals = {name: model.get_submodule(name) for name in replacements}
    record.replacements = replacements
    for name, new in replacements.items():
        hand_over(record.originals[name], new)
    setattr(model, ATTRIBUTE, record)
    try:
        _put_in(model, record)
    except BaseException:
        remove(model, untrained=True)
        raise
    return record


def _put_in(model: nn.Module, record: Attachment) -> None:
    """Put the new layers in their places, in place; `remove` takes back what was done of it."""
    plans, replacements = record.plans, record.replacements
    replace_everywhere(model, {record.originals[name]: new for name, new in replacements.items()})
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for new in replacements.values():
        if not isinstance(new, DynamicLinear) or not new.reads or new.layout == "transposed":
            continue
        if uses[id(new.weight)] == 1 and owns_its_memory(new.weight):
            # a tied one stays as its other owners know it
            record.strides.append((new.weight, new.weight.stride()))
            _store_by_column(new.weight)
    record.closed = close_fused_paths(model, replacements.values())
    for path in whole_group_modules(gated(plans)):
        record.scope.watch(model.get_submodule(path), path)
    by_name = gates(model)
    for plan in gated(plans):
        gate = by_name[plan.group.name]
        gate.verified = plan.execution
    sites = [Site(by_name[p.group.name], p.products) for p in gated(plans) if p.products]
    for path, meeting in hosts_of(sites).items():
        record.handles += narrow_products(model.get_submodule(path), meeting)
    for heads in {plan.heads for plan in gated(plans) if plan.heads}:
        narrow(model, heads, [by_name[p.group.name] for p in gated(plans) if p.heads == heads])


def remove(model: nn.Module, *, untrained: bool = False) -> nn.Module:
    """Take every gated layer out again, in place; the weights are those it has now.

    Args:
        model: gated.
        untrained: its weights were trained no step since the gates were put in, so that nothing
            is to be settled, whatever state they are left in.

    Returns:
        The model, with the modules that it had before.
    """
    record = attached(model)
    for gate in gates(model).values():
        gate.narrow_heads(())
    back = {record.replacements[name]: old for name, old in record.originals.items()}
    if not untrained:
        settle_means(model)
    for parameter, stride in record.strides:
        parameter.data = laid_out(parameter.detach(), stride)
    for new, old in back.items():
        for name, parameter in new.named_parameters(recurse=False):
            if name in old._parameters:  # it may have been loaded by assignment
                old._parameters[name] = parameter
        bias = new._parameters.get("bias")
        if bias is not None and getattr(old, "bias", None) is None:
            old.register_parameter("bias", bias)
        old.train(new.training)
        hand_over(new, old)
    replace_everywhere(model, back)
    for handle in record.handles:
        handle.remove()
    open_fused_paths(record.closed)
    record.scope.close()
    delattr(model, ATTRIBUTE)
    return model


def _build(model: nn.Module, plans: Sequence[GroupPlan], scope: Scope) -> dict[str, nn.Module]:
    """Make the new layers without touching the model."""
    linears: dict[str, DynamicLinear] = {}
    carriers: dict[str, nn.Module] = {}

    def linear(channels: Channels) -> DynamicLinear:
        if channels.module not in linears:
            linears[channels.module] = DynamicLinear.from_module(_submodule(model, channels.module))
        return linears[channels.module]

    for plan in plans:
        group = plan.group
        owner = linear(group.producers[0])
        whole = plan.config.source == "tokens"
        gate = NeuronGate(
            group.name,
            group.kind,
            owner.in_features if whole else owner.out_features,
            group.neurons,
            group.heads,
            config=plan.config,
            scope=scope,
            layout=plan.layout,
            device=owner.weight.device,
            dtype=owner.weight.dtype,
        )
        if group.slots is not None:
            gate.slots = group.slots.index.to(owner.weight.device)
        gate.train(owner.training)
        again = f"_{len(owner.gates)}" if group.kind in owner.gates else ""
        owner.gates[group.kind + again] = gate
        last = [c.module for c in group.producers if c.beside is None][-1:]
        for channels in group.producers:
            index = None if channels.is_whole else channels.index
            value = group.kind == "qk" and (channels.beside or channels.module) in last
            layer = linear(channels)
            if group.kind == "qk" and group.carriers:
                layer.bind("makes", gate, index, carries_value=False, hides=False)
            else:
                beside = channels.beside is not None
                layer.bind("makes", gate, index, carries_value=value, beside=beside)
        for channels in group.consumers:
            index = None if channels.is_whole else channels.index
            linear(channels).bind("reads", gate, index, carries_value=True)
        for channels in group.carriers:
            source = _submodule(model, channels.module)
            if group.kind == "qk":
                hiding = carriers.setdefault(channels.module, HidingCarrier(source))
                assert isinstance(hiding, HidingCarrier)
                hiding.bind(gate, channels.index, carries_value=channels is group.carriers[-1])
            elif plan.mode == "compact" and group.slots is None and not channels.is_whole:
                raise GateError(f"{channels.module} carries only a part of {group.name}.")
            elif plan.mode == "compact" and channels.is_whole:
                carriers[channels.module] = carry(source, gate)
    return {**linears, **carriers}


def whole_group_modules(plans: Sequence[GroupPlan]) -> list[str]:
    """Name the modules that hold whole groups, outermost first; the model itself is "".

    A call of any of them is complete: its gates run before what reads their neurons.
    """
    paths = {""}
    for plan in plans:
        path = ancestor(plan.group)
        while path:
            paths.add(path)
            path = path.rpartition(".")[0]
    return sorted(paths)


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise GateError(f"The model has no module {name!r}, which a neuron group names.") from error


def _store_by_column(weight: nn.Parameter) -> None:
    """Store a consumer's weight so that its columns gather as rows; shape and values stay."""
    weight.data = weight.data.transpose(0, 1).contiguous().transpose(0, 1)
