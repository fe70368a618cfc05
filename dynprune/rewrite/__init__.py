"""Lossless rewrites: cheaper forms of the same function, each proven before it is kept."""
