"""The L1 norm of the gates' values, which pushes neurons that do not matter towards zero."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["gate_l1"]


def gate_l1(values: Iterable[Tensor]) -> Tensor:
    r"""Sum the gates' L1 norms, each a mean over the instances of the batch.

    .. math:: L_m = \sum_{\text{gates}} \frac{1}{B} \sum_{b=1}^{B} \| G_b \|_1

    It is a sum over neurons and over gates, as in the paper, and not a mean: a wide model has a
    larger penalty. It is a mean over instances alone, so that it does not depend on the batch
    size. The weight :math:`\lambda_m` is the caller's.

    Args:
        values: for each gate the values G of a batch, before Top-r.

    Shape:
        Each ``(B, neurons)``; returns a scalar, 0 where there are no gates.

    Source: DynaSegFormer, arXiv 2111.09499, :math:`L_m = \lambda_m \sum \|G\|_1`.
    """
    norms = [value.float().abs().sum(dim=-1).mean() for value in values]
    return torch.stack(norms).sum() if norms else torch.zeros(())
