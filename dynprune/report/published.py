"""What the DynaSegFormer paper published, to stand beside one's own figures."""

from dataclasses import dataclass

__all__ = ["PUBLISHED", "PublishedPoint"]


@dataclass(frozen=True)
class PublishedPoint:
    """One row of the paper's tables.

    Attributes:
        model: that was pruned.
        data: that it was trained and judged on.
        prune_ratio: share of each group's neurons that is skipped; 0 is the dense model.
        dense_gmacs: multiply-adds of one input to the dense model, in units of 1e9; the paper
            calls them FLOPs.
        gmacs: likewise, of the pruned model.
        miou: a fraction.
    """

    model: str
    data: str
    prune_ratio: float
    dense_gmacs: float
    gmacs: float
    miou: float


PUBLISHED = (
    PublishedPoint("SegFormer-B0", "ADE20K", 0.0, 8.4, 8.4, 0.374),
    PublishedPoint("SegFormer-B0", "ADE20K", 0.3, 8.4, 3.3, 0.369),
    PublishedPoint("SegFormer-B0", "ADE20K", 0.5, 8.4, 2.7, 0.350),
    PublishedPoint("SegFormer-B0", "Cityscapes", 0.0, 125.5, 125.5, 0.762),
    PublishedPoint("SegFormer-B0", "Cityscapes", 0.3, 125.5, 62.7, 0.751),
    PublishedPoint("SegFormer-B2", "ADE20K", 0.0, 62.4, 62.4, 0.467),
    PublishedPoint("SegFormer-B2", "ADE20K", 0.3, 62.4, 18.5, 0.454),
)
"""Bai, Mao, Nair: Dynamically pruning SegFormer, ICASSP 2022, arXiv 2111.09499. The dense B2's
multiply-adds are those that the authors of SegFormer give."""
