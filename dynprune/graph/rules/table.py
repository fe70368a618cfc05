"""The rule of every ATen operation, in one table."""

from dynprune.graph.rules.layers import LAYERS
from dynprune.graph.rules.moves import MOVES
from dynprune.graph.rules.pointwise import POINTWISE
from dynprune.graph.rules.products import PRODUCTS
from dynprune.graph.rules.reductions import REDUCTIONS

__all__ = ["RULES"]

RULES = {**MOVES, **POINTWISE, **REDUCTIONS, **PRODUCTS, **LAYERS}
