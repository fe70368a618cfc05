"""Find the model inside what wraps it for several devices or a compiler, or say what to do."""

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import nn
from torch.nn.parameter import is_lazy

from dynprune.errors import UsageError

if TYPE_CHECKING:
    from torch._dynamo import OptimizedModule

__all__ = ["check_whole", "unwrapped"]

_SHARDED = "FullyShardedDataParallel"
_SHARDED_IN_PLACE = "FSDPModule"


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module that DataParallel, DistributedDataParallel or `torch.compile` wraps.

    What they hold is the whole model, so it may be changed where it stands; a compiled one is
    compiled anew when it is called.

    Raises:
        UsageError: what wraps it holds shards or adapters; the message says what to pass.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"A model is a torch.nn.Module, and this is {type(model).__name__}.")
    while True:
        if _is_compiled(model):
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            check_whole(model)
            return model


def check_whole(model: nn.Module) -> None:
    """Check that a model's layers hold its weights themselves: whole, loaded and merged.

    Raises:
        UsageError: they are shards, adapters, or not there.
    """
    kind = type(model).__name__
    for name, module in model.named_modules():
        place = f"{name} of {kind}" if name else kind
        bases = {base.__name__: base.__module__ for base in type(module).__mro__}
        if _SHARDED in bases or _SHARDED_IN_PLACE in bases:
            raise UsageError(
                f"{place} is sharded by FSDP, so no process holds its weights whole. Gate the "
                "model before it is sharded; to save, gather its full state dict into the gated "
                "model that you sharded, and save that."
            )
        if any(package.partition(".")[0] == "deepspeed" for package in bases.values()):
            raise UsageError(
                f"{place} belongs to DeepSpeed. Pass the model that you gave it (model.module), "
                "with its weights gathered where ZeRO partitions them."
            )
        if any(package.partition(".")[0] == "peft" for package in bases.values()):
            raise UsageError(
                f"{place} holds adapters of PEFT. Merge the adapters first (model = "
                "model.merge_and_unload()) and pass the merged model; or pass the model without "
                "them (model.unload())."
            )
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise UsageError(
            f"{kind} has parameters that get their shapes in the first call "
            f"({', '.join(lazy[:3])}): run it once before it is gated."
        )
    absent = [name for name, p in model.named_parameters() if p.is_meta]
    if absent:
        raise UsageError(
            f"{kind} has parameters on the meta device ({', '.join(absent[:3])}): their numbers "
            "are not in memory. Load the whole model onto one device first, with no offloading."
        )


def _is_compiled(model: nn.Module) -> "TypeGuard[OptimizedModule]":
    """Tell a wrapper of `torch.compile`; where its package was not imported, there is none."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and isinstance(model, dynamo.OptimizedModule)
