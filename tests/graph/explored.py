"""The zoo's models with their groups, each traced once for all tests that only look."""

from functools import cache

from torch import nn

from dynprune.example import Example
from dynprune.graph import Grouping, find_groups
from tests.zoo import ZOO


@cache
def explored(name: str) -> tuple[nn.Module, Example, Grouping]:
    """A model of the zoo (not to be changed), one call of it, and its groups."""
    model, example = ZOO[name].made()
    return model, example, find_groups(model, example)
