"""What a program's nodes say of themselves, and what new ones must say."""

from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

__all__ = [
    "MOVES",
    "SAME",
    "VIEWS",
    "describe",
    "emit",
    "input_of",
    "is_fixed",
    "is_parameter",
    "moved",
    "origin",
    "value_of",
]

_ATEN = torch.ops.aten

VIEWS = {
    *(_ATEN.view.default, _ATEN.reshape.default, _ATEN.flatten.using_ints, _ATEN.unflatten.int),
    *(_ATEN.squeeze.dim, _ATEN.squeeze.dims, _ATEN.unsqueeze.default),
}
"""What shows the same values, in the same order, in another shape."""

SAME = {_ATEN.contiguous.default, _ATEN.clone.default, _ATEN.alias.default, _ATEN.detach.default}
"""What shows the same values in the same shape."""

MOVES = {*VIEWS, *SAME, _ATEN.permute.default, _ATEN.transpose.int, _ATEN.t.default}
"""What shows the same values, in another order or shape."""

_ARITHMETIC = {
    *(_ATEN.t.default, _ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor),
    _ATEN.linear.default,
}


def input_of(node: fx.Node, place: int = 0) -> fx.Node:
    """Return the node that stands at a place of another one's arguments."""
    found = node.args[place]
    assert isinstance(found, fx.Node)
    return found


def value_of(node: Any) -> Tensor:
    """Return the tensor without data that tells a node's shape and type."""
    return cast(Tensor, node.meta["val"])


def describe(new: fx.Node, like: fx.Node, value: Tensor) -> None:
    """Let a new node come from where another did, with a value of its own, in place."""
    new.meta = {**like.meta, "val": value}


def emit(graph: fx.Graph, like: fx.Node, target: Any, *args: Any) -> fx.Node:
    """Add a call where the graph inserts, its value worked out from its arguments'."""
    new = graph.call_function(target, args)
    values = pytree.tree_map_only(fx.Node, lambda node: node.meta["val"], args)
    describe(new, like, target(*values))
    return new


def origin(node: Any) -> fx.Node:
    """Return the node whose values a node shows, perhaps in another shape."""
    while isinstance(node, fx.Node) and (node.target in {*VIEWS, *SAME} or _keeps_type(node)):
        node = node.args[0]
    return cast(fx.Node, node)


def _keeps_type(node: fx.Node) -> bool:
    """Whether the node converts to the type that it reads."""
    return node.target == _ATEN.to.dtype and value_of(node).dtype == value_of(node.args[0]).dtype


def is_parameter(node: fx.Node) -> bool:
    """Whether a placeholder stands for a parameter or buffer, and not for an input."""
    return node.name[:2] in {"p_", "b_"}


def is_fixed(node: Any) -> bool:
    """Whether the node is a parameter or buffer, or is worked out from such alone."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "placeholder":
        return is_parameter(node)
    return node.target in {*VIEWS, *SAME, *_ARITHMETIC} and all(map(is_fixed, node.all_input_nodes))


def moved(node: fx.Node, axis: int) -> int | None:
    """Return where a movement brings an axis of what it reads; None if it is none, or merges it."""
    if node.target not in MOVES:
        return None
    if node.target in SAME:
        return axis
    if node.target == _ATEN.t.default:
        return 1 - axis
    before, after = value_of(node.args[0]), value_of(node)
    last = before.dim() - 1
    if node.target in VIEWS:
        kept = axis == last and str(after.shape[-1]) == str(before.shape[-1])
        return after.dim() - 1 if kept else None
    if node.target == _ATEN.permute.default:
        return [a % (last + 1) for a in cast(list[int], node.args[1])].index(axis)
    first, second = (cast(int, a) % (last + 1) for a in node.args[1:3])
    return {first: second, second: first}.get(axis, axis)
