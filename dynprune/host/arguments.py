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
        return value if isinstance(value, nn.Module) or callable(value) else copy.deepcopy(value)

    return pytree.tree_map(copy_one, call)


def with_noise(call: Any, seed: int = 2) -> Any:
    """Return a call with normal noise of variance 1 added to every floating-point tensor."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x

    return pytree.tree_map_only(Tensor, noisy, call)
