"""Lossless rewrites: cheaper forms of the same function, each proven before it is kept."""

from dynprune.rewrite.folded import FoldedDecoder
from dynprune.rewrite.surgery import REWRITES, Rewrite, reapply, rewrite, undo

__all__ = ["REWRITES", "FoldedDecoder", "Rewrite", "reapply", "rewrite", "undo"]
