"""All that can be seen of a model from outside, to prove that a call leaves no trace."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Describe every module: identity, class, mode, hooks, attributes, parameters and buffers."""
    return {
        name: {
            "identity": (id(module), type(module), module.training),
            "children": {key: id(child) for key, child in module._modules.items()},
            "hooks": {key: _hooks(vars(module)[key]) for key in HOOKS},
            "parameters": {key: _parameter(p) for key, p in module._parameters.items()},
            "buffers": {key: _plain(b) for key, b in module._buffers.items()},
            "attributes": {key: _plain(value) for key, value in _attributes(module)},
        }
        for name, module in model.named_modules(remove_duplicate=False)
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what two descriptions differ in."""
    found = [f"{name}: there or not" for name in before.keys() ^ after.keys()]
    for name in before.keys() & after.keys():
        for part, old in before[name].items():
            if after[name][part] != old:
                found.append(f"{name or 'the model'}: {part}: {_first(old, after[name][part])}")
    return found


def _first(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if old.get(key) != new.get(key):
                return f"{key}: {str(old.get(key))[:80]} -> {str(new.get(key))[:80]}"
    return f"{str(old)[:80]} -> {str(new)[:80]}"


def _hooks(hooks: Any) -> Any:
    return {key: id(hook) for key, hook in hooks.items()} if isinstance(hooks, dict) else hooks


def _attributes(module: nn.Module) -> list[tuple[str, Any]]:
    hidden = {"_parameters", "_buffers", "_modules", "training", *HOOKS}
    return [(key, value) for key, value in vars(module).items() if key not in hidden]


def _parameter(parameter: Tensor | None) -> Any:
    if parameter is None:
        return None
    grad = None if parameter.grad is None else (id(parameter.grad), _values(parameter.grad))
    return id(parameter), parameter.requires_grad, grad, _values(parameter)


def _values(tensor: Tensor) -> Any:
    plain = tensor.detach()
    bits = plain.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return tuple(plain.shape), plain.stride(), plain.dtype, hash(bits)


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, nn.Module):
        return id(value)
    if isinstance(value, Tensor):
        return id(value), _values(value)
    if isinstance(value, np.ndarray):
        return id(value), value.tobytes()
    if isinstance(value, dict):
        return id(value), type(value), [(k, _plain(v, depth + 1)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [_plain(item, depth + 1) for item in value]
    if isinstance(value, torch.Generator):
        return id(value), _values(value.get_state())
    if (
        hasattr(value, "__dict__")
        and depth < 4
        and not isinstance(value, type)
        and not callable(value)
    ):
        return id(value), [(k, _plain(v, depth + 1)) for k, v in vars(value).items()]
    return value if isinstance(value, int | float | str | bool | None | set) else id(value)
