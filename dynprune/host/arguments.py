"""Arguments of a call, copied or varied, so that a trial leaves the caller's own alone."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["copied", "with_noise"]


def copied(call: Any) -> Any:
    """Copy every argument but modules and functions; a cache of keys and values fills as it runs.

    Args:
        call: arguments, nested as pytree knows.
    """

    def copy_one(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone()
        if isinstance(value, nn.Module) or callable(value):
            return value
        return copy.deepcopy(value, _detached(value))

    return pytree.tree_map(copy_one, call)


def _detached(value: Any) -> dict[int, Any]:
    """Return a memo for `copy.deepcopy` that holds copies of tensors that carry gradients."""
    memo: dict[int, Any] = {}
    waiting, seen = [value], set[int]()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            if not item.is_leaf:
                memo[id(item)] = item.detach().clone()
        elif isinstance(item, list | tuple | set):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif hasattr(item, "__dict__"):
            waiting.extend(vars(item).values())
    return memo


def with_noise(call: Any, seed: int = 2) -> Any:
    """Return a call with normal noise of variance 1 added to every floating-point tensor."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x

    return pytree.tree_map_only(Tensor, noisy, call)
