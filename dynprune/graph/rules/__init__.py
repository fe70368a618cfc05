"""What each ATen operation does to channel labels."""

from dynprune.graph.rules.table import RULES

__all__ = ["RULES"]
