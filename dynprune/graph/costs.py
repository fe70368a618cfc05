"""Count the multiply-adds of a traced call, and which neuron groups scale them."""

import numpy as np

from dynprune.graph.neurons import Axis, MacNode, NeuronGroup
from dynprune.graph.propagation import Ids, Propagation

__all__ = ["cost_nodes"]


def cost_nodes(
    propagation: Propagation, owner: Ids, groups: tuple[NeuronGroup, ...]
) -> tuple[MacNode, ...]:
    """Return every product of a walk the shares that candidate groups have in its axes.

    Args:
        propagation: what the walk found.
        owner: place among ``groups`` of each id's group, or -1.
        groups: the groups; only candidates get shares.
    """
    gated = np.array([group.reason is None for group in groups] + [False])

    def axis(found: Ids | None) -> Axis:
        if found is None or not len(found):
            return Axis()
        places = owner[found]
        places, counts = np.unique(places[gated[places]], return_counts=True)
        return Axis(
            tuple(
                (groups[place].name, int(count) / len(found))
                for place, count in zip(places, counts, strict=True)
            )
        )

    return tuple(
        MacNode(p.module, p.op, p.macs, axis(p.out), axis(p.contraction))
        for p in propagation.products
    )
