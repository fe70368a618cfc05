"""Branches beside a layer: what is added to its outputs and computed from its input alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from dynprune.graph.labels import ids
from dynprune.graph.propagation import Layer
from dynprune.graph.walk import Walk

__all__ = ["Branch", "branch_beside"]


@dataclass(frozen=True, eq=False)
class Branch:
    """A branch that adds to the neurons of a layer, such as a low-rank adapter.

    Attributes:
        base: the layer.
        makers: the layers whose outputs are added to it.
        inner: the layers before those, in the branch.
    """

    base: Layer
    makers: tuple[Layer, ...]
    inner: tuple[Layer, ...]


def branch_beside(walk: Walk, left: fx.Node, right: fx.Node) -> Branch | None:
    """Return the branch that one side of a sum is to the other, or None.

    It is one where nothing but the layer's own input goes into it. What has read the layer's
    outputs is none: that makes a residual stream.

    Args:
        walk: that has reached the sum.
        left: one summand.
        right: the other.
    """
    return _beside(walk, left, right) or _beside(walk, right, left)


def _beside(walk: Walk, main: fx.Node, added: fx.Node) -> Branch | None:
    base, makers = _makers(walk, walk.labels(main)), _makers(walk, walk.labels(added))
    if len(base) != 1 or not makers or base[0] in makers:
        return None
    runs = walk.runs.get(base[0], [])
    if len(runs) != 1:
        return None
    source = walk.origin(runs[0][1])
    inside = {run[0]: layer for layer, found in walk.runs.items() for run in found}
    seen: set[fx.Node] = set()
    inner: list[Layer] = []
    todo = [added]
    while todo:
        node = todo.pop()
        if node in seen or walk.origin(node) is source or not walk.depends_on_data(node):
            continue
        seen.add(node)
        layer = inside.get(node)
        if layer is base[0] or node.op == "placeholder":
            return None
        if layer is not None and layer not in makers:
            inner.append(layer)
        todo += node.all_input_nodes
    return Branch(base[0], tuple(makers), tuple(inner))


def _makers(walk: Walk, labels: Tensor | None) -> Sequence[Layer]:
    """Return the layers that make these neurons."""
    if labels is None:
        return ()
    layers = list(walk.propagation.layers.values())
    places = walk.propagation.owner(ids(labels).long().numpy())
    return [layers[place] for place in sorted(set(places.tolist()))]
