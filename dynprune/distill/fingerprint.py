"""What a run was started from, so that a checkpoint is never continued as something else."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dynprune.errors import UsageError

__all__ = ["canonical", "check", "digest", "structure", "weights_digest"]

_SHOWN = 6


def canonical(value: Any) -> Any:
    """Return ``value`` as JSON reads it back, so that equal things compare equal."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def structure(model: nn.Module) -> str:
    """Return a digest of the model's modules and of the shapes of its state; weights aside."""
    modules = [(name, type(module).__qualname__) for name, module in model.named_modules()]
    state = [
        (name, list(value.shape), str(value.dtype)) for name, value in model.state_dict().items()
    ]
    return digest([modules, state])


def weights_digest(model: nn.Module) -> str:
    """Return a digest of the model's parameters and buffers, bit for bit."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(name.encode())
        total.update(_bytes(value))
    return total.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def check(saved: Mapping[str, Any], current: Mapping[str, Any], where: str) -> None:
    """Refuse to continue a checkpoint whose fingerprint is not the current one.

    Raises:
        UsageError: naming the first keys that differ, with both values.
    """
    differing = _differences(_flat(saved), _flat(canonical(current)))
    if not differing:
        return
    shown = "\n".join(f"  {line}" for line in differing[:_SHOWN])
    more = f"\n  and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    raise UsageError(
        f"{where} is of another run and cannot be resumed; what differs (checkpoint -> now):\n"
        f"{shown}{more}\nRepeat the command it was started with, or choose another output."
    )


def _differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    absent = "absent"
    keys = [*saved, *(key for key in current if key not in saved)]
    return [
        f"{key}: {_short(saved.get(key, absent))} -> {_short(current.get(key, absent))}"
        for key in keys
        if saved.get(key, absent) != current.get(key, absent)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Spread nested values over dotted keys."""
    if isinstance(value, Mapping) and value:
        items = [(f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and value:
        items = [(f"{prefix}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    return {key: leaf for name, item in items for key, leaf in _flat(item, name).items()}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:12] + "..."
