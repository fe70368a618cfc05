"""Let products write and read planes, for an engine whose depthwise convolutions run on planes."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from dynprune.export.passes.nodes import describe, emit, input_of, value_of

__all__ = ["multiply_in_nchw"]

_ATEN = torch.ops.aten
_ELEMENTWISE: dict[Any, Callable[..., Tensor]] = {
    function: function
    for function in (
        *(_ATEN.gelu.default, _ATEN.relu.default, _ATEN.silu.default, _ATEN.hardswish.default),
        *(_ATEN.dropout.default, _ATEN.sigmoid.default, _ATEN.tanh.default),
    )
}


def multiply_in_nchw(program: ExportedProgram) -> ExportedProgram:
    """Rewrite the products around depthwise convolutions of one instance, in place.

    ``x W^T`` seen as planes is ``W x^T``: the product before a convolution writes the planes that
    the convolution reads, and the product behind reads the planes that it wrote, so that nothing
    is transposed but operands of products, which engines do while they pack them.

    Args:
        program: after `simplify_movements`, with shapes on its nodes.

    Returns:
        The program.
    """
    for node in list(program.graph.nodes):
        if _is_depthwise(node):
            _write_planes(program.graph, node)
            _read_planes(program.graph, node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _is_depthwise(node: fx.Node) -> bool:
    """Whether the node convolves every channel of one instance's map by a filter of its own."""
    if node.target != _ATEN.conv2d.default or len(node.args) < 7:
        return False
    batch, channels, groups = *value_of(node).shape[:2], node.args[6]
    return str(batch) == "1" != str(groups) == str(channels) == str(value_of(node.args[1]).shape[0])


def _write_planes(graph: fx.Graph, convolution: fx.Node) -> None:
    """Where tokens (N, K) of a product become the convolution's map, compute the map instead."""
    image = convolution.args[0]
    tokens = _sole(image, _ATEN.permute.default)
    batched = _sole(tokens, _ATEN.reshape.default)
    product = _sole(_sole(batched, _ATEN.unsqueeze.default), _ATEN.linear.default, inclusive=True)
    if product is None or tokens is None:
        return
    assert isinstance(image, fx.Node)
    height, width = cast(Sequence[Any], tokens.args[1])[1:3]
    x, weight, bias = (*product.args, None)[:3]
    value = value_of(image)
    with graph.inserting_before(image):
        swapped = emit(graph, image, _ATEN.t.default, x)
        if bias is None:
            planes = graph.call_function(_ATEN.mm.default, (weight, swapped))
        else:
            column = emit(graph, image, _ATEN.unsqueeze.default, bias, 1)
            planes = graph.call_function(_ATEN.addmm.default, (column, weight, swapped))
        describe(planes, image, value[0].flatten(1))
        new = graph.call_function(
            _ATEN.reshape.default, (planes, [1, value.shape[1], height, width])
        )
        describe(new, image, value)
    image.replace_all_uses_with(new)


def _read_planes(graph: fx.Graph, convolution: fx.Node) -> None:
    """Where the convolution's map becomes tokens of a product, let the product read the map."""
    last = _only_user(_only_user(convolution, _ATEN.permute.default), _ATEN.flatten.using_ints)
    between: list[fx.Node] = []
    while (after := _only_user(last)) is not None and after.target in _ELEMENTWISE:
        between.append(after)
        last = after
    tokens = _only_user(last, _ATEN.squeeze.dim)
    if _only_user(tokens, _ATEN.linear.default) is None:
        return
    assert tokens is not None
    planes, value = convolution, value_of(convolution)
    with graph.inserting_before(tokens):
        for node in between:
            planes = graph.call_function(
                _ELEMENTWISE[node.target], (planes, *node.args[1:]), dict(node.kwargs)
            )
            describe(planes, node, value)
        one = emit(graph, tokens, _ATEN.squeeze.dim, planes, 0)
        flat = emit(graph, tokens, _ATEN.flatten.using_ints, one, 1)
        new = emit(graph, tokens, _ATEN.t.default, flat)
    tokens.replace_all_uses_with(new)


def _sole(node: Any, target: Any, *, inclusive: bool = False) -> fx.Node | None:
    """Return what a node of this target, read by one other, reads first; itself if inclusive."""
    if not isinstance(node, fx.Node) or node.target != target or len(node.users) != 1:
        return None
    return node if inclusive else input_of(node)


def _only_user(node: fx.Node | None, target: Any = None) -> fx.Node | None:
    """Return the one node that reads this one, where there is one and it is of this target."""
    if node is None or len(node.users) != 1:
        return None
    (user,) = node.users
    return user if target is None or user.target == target else None
