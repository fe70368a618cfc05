"""What each ATen operation does to channel labels."""

from dynprune.graph.rules.layers import LAYERS
from dynprune.graph.rules.moves import MOVES
from dynprune.graph.rules.pointwise import POINTWISE
from dynprune.graph.rules.products import PRODUCTS
from dynprune.graph.rules.reductions import REDUCTIONS

__all__ = ["RULES"]

RULES = {**MOVES, **POINTWISE, **REDUCTIONS, **PRODUCTS, **LAYERS}
