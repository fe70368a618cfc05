"""Lossless rewrites: cheaper forms of the same function, each proven before it is kept."""

from dynprune.rewrite.attention.unpack import UNPACK_ATTENTION
from dynprune.rewrite.attention.unpacked import UnpackedAttention
from dynprune.rewrite.decoder.folded import FoldedDecoder
from dynprune.rewrite.made import count_made
from dynprune.rewrite.record import Rewrite
from dynprune.rewrite.surgery import REWRITES, RewriteKind, reapply, rewrite, undo

__all__ = [
    "REWRITES",
    "UNPACK_ATTENTION",
    "FoldedDecoder",
    "Rewrite",
    "RewriteKind",
    "UnpackedAttention",
    "count_made",
    "reapply",
    "rewrite",
    "undo",
]
