"""Neuron groups that must be proved together, and the module that runs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from dynprune.gate.plan import GroupPlan, gated

__all__ = ["Unit", "fewer_tokens", "units_of"]

TOKENS = 32
"""Tokens that suffice to see how a module handles its neurons."""


@dataclass
class Unit:
    """Groups that are tried together, and the module that runs them."""

    module: str
    plans: list[GroupPlan]


def units_of(plans: Sequence[GroupPlan], calls: Mapping[str, int]) -> list[Unit]:
    """Bring groups together that share heads or a layer; find the smallest module that runs them.

    What one group does to a layer must be right for the others that meet there.

    Args:
        plans: of a model's groups; refused ones are left out.
        calls: module name -> times it runs in one call of the model.
    """
    units: list[tuple[set[str], list[GroupPlan]]] = []
    for plan in gated(plans):
        places, members = set(plan.group.modules), [plan]
        if plan.group.heads:
            parent = plan.group.producers[0].module.rpartition(".")[0]
            places.add(f"heads of {parent}")
        apart = []
        for other in units:
            if places.isdisjoint(other[0]):
                apart.append(other)
            else:
                places |= other[0]
                members = other[1] + members
        units = [*apart, (places, members)]
    return [Unit(_runner(members, calls), members) for _, members in units]


def _runner(plans: Sequence[GroupPlan], calls: Mapping[str, int]) -> str:
    """Name the innermost module that holds all modules of these groups and runs exactly once."""
    names = [name.split(".") for plan in plans for name in plan.group.modules]
    prefix: list[str] = []
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1:
            break
        prefix.append(parts[0])
    if all(prefix == name for name in names):
        prefix = prefix[:-1]
    while prefix and calls.get(".".join(prefix), 0) != 1:
        prefix = prefix[:-1]
    return ".".join(prefix)


def fewer_tokens(call: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """Cut a module's call to its first tokens, or return None where it has few or is no sequence.

    A module whose code needs them all fails on what is left, or answers another question; a trial
    that does not succeed here says nothing.

    Args:
        call: positional and keyword arguments; the first tensor, (B, T, C), tells the tokens.
    """
    leaves = pytree.tree_leaves(call)
    first = next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)
    if first is None or first.dim() != 3 or not first.is_floating_point():
        return None
    count = first.shape[1]
    told = any(isinstance(leaf, int) and leaf == count for leaf in leaves)
    if count < 2 * TOKENS or count in (first.shape[0], first.shape[2]) or told:
        return None

    def cut(tensor: Tensor) -> Tensor:
        for axis, size in enumerate(tensor.shape):
            if size == count:
                tensor = tensor.narrow(axis, 0, TOKENS)
        return tensor

    return pytree.tree_map_only(Tensor, cut, call)
