"""Rows that several experts share: kept by each of them in memory, and once in files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dynprune.gate.route import ExpertAttachment, expert_attachment, has_experts

__all__ = ["rows_in_place", "shared_rows", "spread_rows", "stacks"]


def stacks(model: nn.Module) -> dict[str, Tensor]:
    """Return, for every parameter that holds rows of neurons, (M, K) neurons of each expert.

    Those are the weights and biases of producers and carriers; every consumer has its own for each
    expert.
    """
    if not has_experts(model):
        return {}
    record: ExpertAttachment = expert_attachment(model)
    found = {}
    for plan in record.plans:
        for channels in (*plan.group.producers, *plan.group.carriers):
            for name, _ in model.get_submodule(channels.module).named_parameters(recurse=False):
                found[f"{channels.module}.{name}"] = record.sets[plan.group.name]
    return found


@torch.no_grad()
def shared_rows(model: nn.Module) -> dict[str, Tensor]:
    """Return the rows (U, ...) of those parameters in which a neuron is alike in every expert.

    Training lets the experts' copies of a neuron drift apart; such a parameter is absent.
    """
    found = {}
    for name, index in stacks(model).items():
        stack = model.get_parameter(name)
        place = _places(index).to(stack.device)
        rows = stack.new_empty(int(place.max()) + 1, *stack.shape[2:])
        rows[place.flatten()] = stack.detach().flatten(0, 1)
        if torch.equal(rows[place], stack):
            found[name] = rows
    return found


@contextmanager
def rows_in_place(model: nn.Module, rows: Mapping[str, Tensor]) -> Iterator[None]:
    """Let parameters be rows that are there once for the block, in place."""
    before = {name: model.get_parameter(name) for name in rows}
    try:
        for name, tensor in rows.items():
            _put(model, name, nn.Parameter(tensor, requires_grad=False))
        yield
    finally:
        for name, parameter in before.items():
            _put(model, name, parameter)


@torch.no_grad()
def spread_rows(model: nn.Module, rows: Mapping[str, Tensor]) -> None:
    """Give every expert its copy of rows that were there once, in place."""
    index = stacks(model)
    for name, tensor in rows.items():
        model.get_parameter(name).copy_(tensor[_places(index[name]).to(tensor.device)])


def _places(index: Tensor) -> Tensor:
    """Return (M, K): where each expert's neurons are among all that any expert has."""
    return torch.searchsorted(index.unique(), index)


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, own = name.rpartition(".")
    model.get_submodule(path)._parameters[own] = parameter
