"""The way back: write a trained fold into the published form, which computes the same."""

from typing import cast

import torch
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.rewrite.decoder.folded import (
    FoldedDecoder,
    folded_weights,
    pointwise_bias,
    pointwise_weight,
)
from dynprune.rewrite.proof import relative_error

__all__ = ["unfold"]

_UNTRAINED = 1e-6
"""A fold within this of its source's, relatively, was not trained: float32's last bits."""


@torch.no_grad()
def unfold(folded: FoldedDecoder) -> nn.Module:
    """Return the source back, changed in place where the fold was trained.

    An untrained fold leaves the source's bits alone. A trained weight ``W_i`` is factorised
    exactly, ``W_i = U S V^T = (U S^1/2)(S^1/2 V^T) = F_i L_i``, which fits since the source's
    projections are no narrower than the rank of ``W_i``.

    Args:
        folded: the decoder that adds.

    Returns:
        The head that concatenates, trainable where the fold was.

    Raises:
        UsageError: the trained bias has no place in the published form.
    """
    source = folded.source
    if not _is_untrained(folded):
        _write_back(folded)
    for module in folded.frozen_modules():
        module.requires_grad_(folded.weights[0].requires_grad)
    return source


def _is_untrained(folded: FoldedDecoder) -> bool:
    weights, bias = folded_weights(folded.source, folded.structure)
    pairs = list(zip(folded.weights, weights, strict=True))
    if folded.bias is not None and bias is not None:
        pairs.append((folded.bias, bias))
    return all(relative_error(new.detach(), old) <= _UNTRAINED for new, old in pairs)


def _write_back(folded: FoldedDecoder) -> None:
    source, structure = folded.source, folded.structure
    fuse = source.get_submodule(structure.fuse)
    columns = torch.zeros_like(pointwise_weight(fuse), dtype=torch.float64)
    bias = None if folded.bias is None else folded.bias.double()
    fuse_bias: Tensor | None = None
    if pointwise_bias(fuse) is not None:
        bias, fuse_bias = None, bias
    plan: list[tuple[nn.Module, Tensor, Tensor | None]] = []
    for branch, weight in zip(structure.branches, folded.weights, strict=True):
        projection = source.get_submodule(branch.projection)
        left, scales, right = torch.linalg.svd(weight.double(), full_matrices=False)
        rank, root = len(scales), scales.sqrt()
        block = columns[:, slice(*branch.columns)]
        block[:, :rank] = left * root
        rows = torch.zeros_like(pointwise_weight(projection), dtype=torch.float64)
        rows[:rank] = root[:, None] * right
        has_bias = pointwise_bias(projection) is not None
        shift = torch.zeros_like(rows[:, 0]) if has_bias else None
        if bias is not None and shift is not None and rank < len(rows):
            block[:, rank], shift[rank] = bias, 1.0  # a spare channel carries the whole bias
            bias = None
        plan.append((projection, rows, shift))
    if bias is not None:
        _absorb(folded, bias)
    for projection, rows, shift in plan:
        _set(projection, rows, shift)
    _set(fuse, columns, fuse_bias)


def _absorb(folded: FoldedDecoder, bias: Tensor) -> None:
    """Move a bias into the running mean of the BatchNorm that follows, in place."""
    norm = folded.norm
    if norm is None or norm.running_mean is None:
        raise UsageError(
            "the folded decoder's trained bias fits neither its source's projections nor its"
            " fusing layer, and no BatchNorm follows; keep the folded form"
        )
    norm.running_mean.sub_(bias.to(norm.running_mean.dtype))


def _set(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    old = cast(Tensor, module.weight)
    old.copy_(weight.view_as(old))
    if bias is not None:
        cast(Tensor, module.bias).copy_(bias)
