"""Dynamic pruning of trained PyTorch transformers: every input computes what it needs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynprune.api import apply, check, inspect, load, restore, save
    from dynprune.example import Example
    from dynprune.recipe import Recipe, load_recipe

__all__ = [
    "Example",
    "Recipe",
    "apply",
    "check",
    "inspect",
    "load",
    "load_recipe",
    "restore",
    "save",
]

_HOMES = {
    "Example": "dynprune.example",
    "Recipe": "dynprune.recipe",
    "apply": "dynprune.api",
    "check": "dynprune.api",
    "inspect": "dynprune.api",
    "load": "dynprune.api",
    "load_recipe": "dynprune.recipe",
    "restore": "dynprune.api",
    "save": "dynprune.api",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: ``import dynprune`` itself costs nothing."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
