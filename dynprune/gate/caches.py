"""Which attention modules keep keys and values from one call to the next."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from dynprune.example import Example

__all__ = ["modules_with_caches"]

_NAMES = ("past", "cache")  # in the names of parameters that take a cache
_PLAIN = (bool, int, Tensor, type(None))  # a switch or a position beside it
_SWITCH = "use_cache"


def modules_with_caches(model: nn.Module, example: Example) -> frozenset[str]:
    """Name the modules that are handed a cache of keys and values when the model uses one.

    What a gate chose belongs to one call, and a cache outlives it: neurons that were cached narrow
    would meet the selection of another call, or none.

    Args:
        model: dense, in eval mode.
        example: a call of it; run again with its cache switched on where it has that switch.
    """
    watched = {
        name: module
        for name, module in model.named_modules()
        if name and any(_takes_cache(n) for n in _parameters(module))
    }
    if not watched:
        return frozenset()
    found: set[str] = set()
    handles = [
        module.register_forward_pre_hook(partial(_note, found, name), with_kwargs=True)
        for name, module in watched.items()
    ]
    try:
        if _SWITCH in _parameters(model):
            Example(example.args, {**example.kwargs, _SWITCH: True}).run(model)
        else:
            example.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(found)


def _note(
    found: set[str],
    name: str,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    given = [*zip(_parameters(module), args, strict=False), *kwargs.items()]
    if any(_takes_cache(key) and not isinstance(value, _PLAIN) for key, value in given):
        found.add(name)


def _takes_cache(parameter: str) -> bool:
    return any(name in parameter for name in _NAMES)


def _parameters(module: nn.Module) -> tuple[str, ...]:
    forward: Callable[..., Any] = module.forward
    return tuple(inspect.signature(forward).parameters)
