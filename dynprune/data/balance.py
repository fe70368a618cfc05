"""Weights that let rare classes count for more: from the share of the pixels that each takes."""

from collections.abc import Sequence

import torch

from dynprune.data.segmentation import SegmentationData
from dynprune.data.values import VOID
from dynprune.errors import InputError

__all__ = ["class_shares", "inverse_root_weights"]


def class_shares(data: SegmentationData) -> list[float]:
    """Return the share of the labelled pixels that each class takes; every label map is read once.

    Raises:
        InputError: if no pixel is labelled.
    """
    counts = torch.zeros(VOID + 1, dtype=torch.int64)
    for index in range(len(data)):
        counts += data.load(index)[1].flatten().bincount(minlength=VOID + 1)
    known = counts[: len(data.classes)].double()
    if not known.any():
        raise InputError(f"no pixel of {data.root} has a label, so that classes have no shares")
    return (known / known.sum()).tolist()


def inverse_root_weights(shares: Sequence[float]) -> list[float]:
    r"""Weigh each class by the inverse root of its share, with a mean of 1 over the pixels.

    .. math:: w_c = \frac{p_c^{-1/2}}{\sum_k p_k \, p_k^{-1/2}}

    A class of no pixels gets the largest weight of the others.

    Example:
        >>> [round(weight, 3) for weight in inverse_root_weights([0.64, 0.36])]
        [0.893, 1.19]
    """
    mean = sum(share**0.5 for share in shares)
    least = min(share for share in shares if share > 0)
    return [max(share, least) ** -0.5 / mean for share in shares]
