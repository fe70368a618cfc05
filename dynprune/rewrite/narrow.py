"""Take neurons out of a model for good: narrower layers, and the way to build them again."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynprune.graph.neurons import NeuronGroup
from dynprune.rewrite.record import Rewrite

__all__ = ["DROP_NEURONS", "can_narrow", "drop_neurons", "narrow_again"]

DROP_NEURONS = "drop-neurons"

Pruner = Callable[[nn.Module, Sequence[int]], nn.Module]


def can_narrow(model: nn.Module, group: NeuronGroup) -> bool:
    """Whether a group's neurons can be taken out of all of its layers.

    They can where they are whole axes of linears, 1x1 and depthwise convolutions and batch norms;
    heads cannot, since each must keep its width.
    """
    places = (*group.producers, *group.carriers, *group.consumers)
    return (
        group.heads == 0
        and group.reason is None
        and not group.parameters
        and bool(group.consumers)
        and all(channels.is_whole for channels in places)
        and all(_pruner(model.get_submodule(m), side) is not None for m, side in _sides(group))
    )


@torch.no_grad()
def drop_neurons(
    model: nn.Module, group: NeuronGroup, dead: Sequence[int], mean: Tensor | None = None
) -> tuple[Rewrite, Callable[[], None]]:
    r"""Take neurons out of every layer of their group, in place.

    .. math:: b_2 \leftarrow b_2 + W_2^{dead} \mu^{dead}

    Args:
        model: dense.
        group: one that `can_narrow`.
        dead: neurons that go.
        mean: (neurons,) value at which the neurons stood at the consumers; zero where None.

    Returns:
        The record, and a function that puts the layers back as they were.
    """
    names = [name for name, _ in _sides(group)]
    before = [(m, dict(vars(m)), _tensors(m)) for m in map(model.get_submodule, names)]
    if mean is not None:
        for channels in group.consumers:
            consumer: Any = model.get_submodule(channels.module)
            if consumer.bias is not None:
                columns = consumer.weight.flatten(1)[:, list(dead)]
                shift = columns @ mean[list(dead)].to(columns)
                consumer.bias = nn.Parameter(consumer.bias + shift)
    details = {"sides": [list(pair) for pair in _sides(group)], "dead": sorted(dead)}
    _narrow(model, details)

    def restore() -> None:
        for module, attributes, (parameters, buffers) in before:
            vars(module).update(attributes)
            module._parameters.update(parameters)
            module._buffers.update(buffers)

    return Rewrite(DROP_NEURONS, group.name, details, None), restore


def narrow_again(model: nn.Module, record: Rewrite) -> Callable[[], None]:
    """Check that a record fits, and give the function that narrows the layers in place."""
    for name, side in record.details["sides"]:
        if _pruner(model.get_submodule(name), side) is None:
            raise ValueError(f"{name} has no {side} channels to take out")
    return lambda: _narrow(model, record.details)


def _narrow(model: nn.Module, details: Mapping[str, Any]) -> None:
    for name, side in details["sides"]:
        module = model.get_submodule(name)
        prune = _pruner(module, side)
        assert prune is not None
        prune(module, details["dead"])


def _sides(group: NeuronGroup) -> list[tuple[str, str]]:
    """Give every layer of the group, with the side on which it holds the neurons."""
    return [
        *((channels.module, "out") for channels in (*group.producers, *group.carriers)),
        *((channels.module, "in") for channels in group.consumers),
    ]


def _pruner(module: nn.Module, side: str) -> Pruner | None:
    """Give torch-pruning's function for one side of a layer; None where there is none."""
    if type(module) is nn.Linear:
        if side == "out":
            return torch_pruning.prune_linear_out_channels
        return torch_pruning.prune_linear_in_channels
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if module.groups == module.in_channels == module.out_channels and side == "out":
            return torch_pruning.prune_depthwise_conv_out_channels
        if module.groups == 1:
            if side == "out":
                return torch_pruning.prune_conv_out_channels
            return torch_pruning.prune_conv_in_channels
        return None
    if isinstance(module, _BatchNorm) and side == "out":
        return torch_pruning.prune_batchnorm_out_channels
    return None


def _tensors(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return dict(module._parameters), dict(module._buffers)
