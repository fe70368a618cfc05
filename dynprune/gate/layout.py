"""How a linear-like module keeps its weight, and what else host code may read of it."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.errors import GateError

__all__ = ["WeightLayout", "lend_attributes", "weight_layout"]

WeightLayout = Literal["linear", "transposed", "pointwise"]
_ROUNDING = 0.05  # of bfloat16; the other layout is as wrong as random numbers are


def weight_layout(module: nn.Module) -> WeightLayout:
    """Return how a module keeps its weight: ``linear`` (out, in), or otherwise.

    A class of somebody's own is run on random numbers, with random weights of its shapes.

    Raises:
        GateError: where the module is none.
    """
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        layout: WeightLayout = "linear"
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        ones = all(k == 1 for k in (*module.kernel_size, *module.stride, module.groups))
        padded = not isinstance(module.padding, str) and any(p != 0 for p in module.padding)
        if not ones or padded:
            raise GateError(f"{kind} is not a 1x1 convolution.")
        layout = "pointwise"
    else:
        layout = _tried(module)
    if not isinstance(getattr(module, "weight", None), nn.Parameter):
        raise GateError(f"{kind} keeps no weight parameter.")
    return layout


def _tried(module: nn.Module) -> WeightLayout:
    kind = type(module).__name__
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    if weight is None or weight.dim() != 2 or len(list(module.children())) > 0:
        raise GateError(f"{kind} is not a linear layer.")
    random = torch.Generator().manual_seed(0)

    def drawn(like: Tensor, *shape: int) -> Tensor:
        return torch.randn(shape or like.shape, generator=random).to(like)

    state = {name: drawn(value) for name, value in module.named_parameters()}
    failure = "it computes something else than its weight and bias say"
    layouts: tuple[WeightLayout, ...] = ("linear", "transposed")
    for layout in layouts:
        matrix = state["weight"] if layout == "linear" else state["weight"].t()
        x = drawn(weight, 2, 3, matrix.shape[1])
        try:
            with torch.no_grad():
                found = torch.func.functional_call(module, state, (x,))
                wanted = F.linear(x, matrix, None if bias is None else state["bias"])
            if bool((found - wanted).abs().max() <= _ROUNDING * wanted.abs().max()):
                return layout
        except Exception as error:  # a foreign layer fails in its own words
            failure = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    raise GateError(f"{kind} is not a linear layer: {failure}.")


def lend_attributes(source: nn.Module, layer: nn.Module) -> None:
    """Give ``layer`` the very values that host code may read of ``source``, in place.

    Sizes, strides, and what its user put on it: whatever is no module and not the layer's own.
    """
    values: dict[str, Any] = vars(source)
    for name, value in values.items():
        own = name.startswith("_") or name in vars(layer) or hasattr(type(layer), name)
        if not own and not isinstance(value, nn.Module | nn.Parameter):
            setattr(layer, name, value)
