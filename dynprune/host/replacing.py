"""Put modules into a model wherever others stand."""

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["replace_everywhere"]


def replace_everywhere(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules at every place of ``model`` where those stand that they are for, in place.

    A shared module has several parents, and code may keep modules in lists of its own beside. Where
    a new module holds the old one itself, it keeps it.

    Args:
        model: that holds them.
        new: old module -> new one.
    """
    kept = set(new.values())
    for parent in list(model.modules()):
        if parent in kept:
            continue
        for name, child in list(parent._modules.items()):  # named_children skips repeats
            if child is not None and child in new:
                setattr(parent, name, new[child])
        for held in vars(parent).values():
            if isinstance(held, list):
                held[:] = [_successor(item, new) for item in held]
            elif isinstance(held, dict) and held is not parent._modules:
                held.update({key: _successor(item, new) for key, item in held.items()})


def _successor(item: Any, new: Mapping[nn.Module, nn.Module]) -> Any:
    return new.get(item, item) if isinstance(item, nn.Module) else item
