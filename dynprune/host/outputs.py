"""The tensors that a model returns, and whether two results agree but for rounding."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.host.replacing import forwards_replaced

__all__ = [
    "TOLERANCE",
    "Results",
    "close",
    "relative_error",
    "returning_tensors",
    "tensors_of",
    "values_of",
]

Results = Sequence[Tensor | None]

# Largest difference over the largest magnitude of the reference. Sums of a few hundred products
# in another order differ by about 1e-6 in float32; a wrong index set by 1e-1 and more.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors of a model's output, also of dataclasses that pytree does not know."""
    if hasattr(output, "__dataclass_fields__") and not isinstance(output, Mapping):
        return [leaf for value in vars(output).values() for leaf in tensors_of(value)]
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def values_of(output: Any) -> list[Tensor]:
    """Return the floating-point tensors of a model's output, in double precision."""
    return [tensor.double() for tensor in tensors_of(output) if tensor.is_floating_point()]


def relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the squared difference over the squared norm, all tensors together."""
    off = sum(float((a - b).square().sum()) for a, b in zip(found, wanted, strict=True))
    return off / max(sum(float(b.square().sum()) for b in wanted), 1e-30)


def close(result: Results, reference: Results, tolerance: float = 0.0) -> bool:
    """Whether two results of a model are equal but for rounding.

    Args:
        result: tensors; None agrees with everything.
        reference: that they should equal.
        tolerance: of coarser types within the model; at least that of each tensor's own counts.
    """
    if len(result) != len(reference) or not reference:
        return False
    for got, want in zip(result, reference, strict=True):
        if got is None or want is None:
            continue
        if got.shape != want.shape:
            return False
        if not want.is_floating_point():
            if not torch.equal(got, want):
                return False
            continue
        scale = want.abs().max().clamp_min(1e-12)
        error = (got - want).abs().max() / scale
        if not bool(error <= max(tolerance, TOLERANCE.get(want.dtype, 2e-5))):
            return False
    return True


@contextmanager
def returning_tensors(model: nn.Module) -> Iterator[None]:
    """Let a model return the tensors of its output alone, in place, while the block runs.

    A tracer takes known containers only; a cache of keys and values beside the output, in a class
    of its own, would end the trace.
    """
    forward = model.forward

    @wraps(forward)
    def tensors(*args: Any, **kwargs: Any) -> list[Tensor]:
        return tensors_of(forward(*args, **kwargs))

    with forwards_replaced({model: tensors}):
        yield
