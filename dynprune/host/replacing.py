"""Put modules, or what they run when they are called, in the place of others."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["forwards_replaced", "replace_everywhere"]


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


@contextmanager
def forwards_replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules run other functions than their ``forward``, in place, while the block runs."""
    replaced = []
    try:
        for module, forward in forwards.items():
            attributes = vars(module)
            replaced.append((attributes, attributes.get("forward")))
            attributes["forward"] = forward
        yield
    finally:
        for attributes, before in replaced:
            if before is None:
                del attributes["forward"]
            else:
                attributes["forward"] = before


def _successor(item: Any, new: Mapping[nn.Module, nn.Module]) -> Any:
    return new.get(item, item) if isinstance(item, nn.Module) else item
