"""Prove a rewritten head by running it beside its source."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["MODEL_TOLERANCE", "TOLERANCE", "largest_error", "outputs_of", "relative_error"]

TOLERANCE = 1e-5
"""Largest relative error of a proven rewrite: float32's rounding of sums in another order."""

MODEL_TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 10 * TOLERANCE,
    torch.float32: 10 * TOLERANCE,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""The same of a model's outputs by their type: what lies behind a rewrite amplifies rounding."""

_SIZES = ((16, 16), (23, 17), (9, 30))
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected value; inf where meaningless."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return float("inf")
    actual, expected = actual.detach(), expected.detach()
    if not expected.is_floating_point():
        return 0.0 if torch.equal(actual, expected) else float("inf")
    difference = (actual - expected).abs().max()
    error = float(difference / expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny))
    return float("inf") if math.isnan(error) else error


def outputs_of(output: Any) -> list[Tensor]:
    """Return the tensors in what a model returned."""
    if not isinstance(output, Tensor | tuple | list | Mapping):
        output = vars(output)
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def largest_error(
    source: nn.Module, rewritten: nn.Module, call: tuple[tuple[Any, ...], Mapping[str, Any]]
) -> float:
    """Compare two heads on a captured call and on random maps of other sizes.

    In evaluation mode on the captured call and three sets of random maps, odd sizes among them; in
    training mode, without dropout, on the random maps: outputs and BatchNorm's running statistics.
    Both heads are copied first (and raised to float32), so that nothing of theirs changes.

    Args:
        source: the head as published.
        rewritten: the head that should equal it, around a source of its own.
        call: ``(args, kwargs)`` of the source in the model.

    Returns:
        The largest relative error of all comparisons.
    """
    source, rewritten = copy.deepcopy(source).float(), copy.deepcopy(rewritten).float()
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.float(), (call[0], dict(call[1])))
    calls = [(args, kwargs), *(_random_call(args, kwargs, size) for size in _SIZES)]
    worst = 0.0
    with torch.no_grad():
        source.eval(), rewritten.eval()
        for args, kwargs in calls:
            expected = source(*args, **kwargs)
            worst = max(worst, relative_error(rewritten(*args, **kwargs), expected))
    source.train(), rewritten.train()
    with _WithoutDropout(), torch.enable_grad():
        for args, kwargs in calls[1:]:
            expected = source(*args, **kwargs)
            worst = max(worst, relative_error(rewritten(*args, **kwargs), expected))
    buffers = dict(rewritten.named_buffers())
    for name, buffer in source.named_buffers():
        if buffer.is_floating_point():
            worst = max(worst, relative_error(buffers[f"source.{name}"], buffer))
    return worst


def _random_call(
    args: tuple[Any, ...], kwargs: dict[str, Any], size: tuple[int, int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make maps of other sizes in the same proportions, the largest of ``size``."""
    leaves = pytree.tree_leaves((args, kwargs))
    maps = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() == 4]
    largest = [max(leaf.shape[axis] for leaf in maps) for axis in (2, 3)]
    generator = torch.Generator().manual_seed(sum(size))

    def resized(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() != 4:
            return leaf
        spatial = [-(-size[i] * leaf.shape[2 + i] // largest[i]) for i in (0, 1)]
        noise = torch.randn(2, leaf.shape[1], *spatial, generator=generator)
        return noise.to(leaf)

    return pytree.tree_map(resized, (args, kwargs))


class _WithoutDropout(TorchFunctionMode):
    """Make every dropout the identity: two heads that draw in another order can be compared."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return args[0] if func in _DROPOUTS else func(*args, **(kwargs or {}))
