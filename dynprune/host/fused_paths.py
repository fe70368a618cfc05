"""Keep torch's fused transformer layers from reading past the modules that were put into them.

`nn.TransformerEncoderLayer` hands its weights to one fused kernel at inference and calls none of
its children; `nn.TransformerEncoder` packs padded inputs for it. Both ask an attribute of their own
first, which is what is changed here.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["ClosedPath", "close_fused_paths", "open_fused_paths", "without_fused_paths"]

ClosedPath = tuple[nn.Module, str, Any]
"""A fused module, the attribute that was changed, and the value that it had."""

_SWITCHES: tuple[tuple[type[nn.Module], str, Any], ...] = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu", 0),
    (nn.TransformerEncoder, "use_nested_tensor", False),
)


def close_fused_paths(model: nn.Module, replaced: Iterable[nn.Module]) -> tuple[ClosedPath, ...]:
    """Make every fused module that holds one of these run its children instead, in place.

    Args:
        model: that holds them all.
        replaced: modules that were put into it.

    Returns:
        What was changed, for `open_fused_paths`.
    """
    inside = {id(module) for module in replaced}
    closed: list[ClosedPath] = []
    for module in model.modules():
        for kind, attribute, off in _SWITCHES:
            if not isinstance(module, kind) or not getattr(module, attribute, off):
                continue
            if any(id(child) in inside for child in module.modules()):
                closed.append((module, attribute, getattr(module, attribute)))
                setattr(module, attribute, off)
    return tuple(closed)


def open_fused_paths(closed: Sequence[ClosedPath]) -> None:
    """Put every fused module's own value back, in place."""
    for module, attribute, value in closed:
        setattr(module, attribute, value)


def without_fused_paths() -> AbstractContextManager[object]:
    """Run attention and encoder layers by their parts, in this thread and for a block alone.

    `torch.backends.mha.set_fastpath_enabled` switches every thread of the process. Both fused
    paths also stand back where functions of torch are overridden, which is a thread's own matter.
    """
    return _Unchanged()


class _Unchanged(TorchFunctionMode):
    """Override every function of torch by itself."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return function(*args, **(kwargs or {}))
