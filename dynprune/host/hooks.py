"""Hand a module's hooks over to what replaces it, and name what cannot be handed over."""

from typing import TypeVar

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = [
    "HOOKS",
    "hand_over",
    "hooked_within",
    "hooks_of_calls",
    "why_irreplaceable",
    "without_hooks",
]

HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)
"""Attributes in which every module keeps its hooks: of calls, of gradients, of state dicts."""

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_CALLED = tuple(name for name in HOOKS if "state_dict" not in name)
_QUANTISED = ("torch.ao.", "torch.nn.quantized", "bitsandbytes", "torchao", "optimum.quanto")


def hand_over(old: nn.Module, new: nn.Module) -> None:
    """Let ``new`` have the hooks of ``old``, in place; the other way round it gives them back.

    The two exchange the very dicts that hold the hooks. So a hook's handle removes it wherever it
    is by then, and what is registered meanwhile goes back with the rest.
    """
    for name in HOOKS:
        vars(old)[name], vars(new)[name] = vars(new)[name], vars(old)[name]


def hooks_of_calls(module: nn.Module) -> list[str]:
    """Name the functions that are called before and after each call of a module itself."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return [getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks]


def hooked_within(module: nn.Module) -> str | None:
    """Name the first submodule whose calls or gradients have hooks, its path in it; or None."""
    for name, child in module.named_modules():
        if name and any(vars(child)[hooks] for hooks in _CALLED):
            return name
    return None


def without_hooks(copied: ModuleT) -> ModuleT:
    """Take every hook off a copy and its submodules, in place: it runs to be compared."""
    for module in copied.modules():
        vars(module).update({name: vars(nn.Module())[name] for name in HOOKS})
    return copied


def why_irreplaceable(module: nn.Module) -> str | None:
    """Say why a layer that computes by its own weight could not take this one's place, or None.

    The reason says what to do, and reads on from the layer's name.
    """
    if is_parametrized(module):
        kind = type_before_parametrizations(module).__name__
        names = " and ".join(repr(name) for name in module.parametrizations)  # type: ignore[union-attr]
        return (
            f"is a {kind} whose {names} is parametrized; make it a plain one first with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            return "is pruned by a mask; make it permanent first with torch.nn.utils.prune.remove"
        if isinstance(hook, WeightNorm):
            return "has a weight norm; take it off first with torch.nn.utils.remove_weight_norm"
        if isinstance(hook, SpectralNorm):
            return "has a spectral norm; take it off first with torch.nn.utils.remove_spectral_norm"
    if "_hf_hook" in vars(module):
        return (
            f"has a hook of accelerate ({type(module._hf_hook).__name__}), which moves it between "
            "devices; take it off first with accelerate.hooks.remove_hook_from_module"
        )
    if "forward" in vars(module):
        return "has a forward of its own on the instance, which what replaces it would not run"
    return _why_no_numbers(module)


def _why_no_numbers(module: nn.Module) -> str | None:
    """Say why a layer has no plain floating-point weights, or None."""
    kind = type(module)
    quantised = f"is quantised ({kind.__name__}); gate the model first and quantise afterwards"
    if kind.__module__.startswith(_QUANTISED):
        return quantised
    if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
        return "has no weights yet; run the model once first"
    for parameter in module.parameters(recurse=False):
        if parameter.is_meta:
            return "has its weights on the meta device; load them first"
        data = type(parameter.data)
        if not (parameter.is_floating_point() or parameter.is_complex()):
            return quantised
        if data.__module__.partition(".")[0] != "torch" or data.__name__ == "DTensor":
            return f"has weights of type {data.__name__}, not plain tensors"
    return None
