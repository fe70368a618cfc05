"""Write averages and norms so that ONNX Runtime finds its fast kernels for them."""

from typing import Any, cast

import torch
from torch import fx
from torch.export import ExportedProgram

from dynprune.export.passes.nodes import describe, input_of, value_of

__all__ = ["choose_kernels"]

_ATEN = torch.ops.aten


def choose_kernels(program: ExportedProgram) -> ExportedProgram:
    """Rewrite averages over tokens and norms of sums, in place; values stay, to rounding.

    ONNX Runtime reduces along an inner axis value by value: ten times slower than the product
    ``1^T x / T``. The kernel into which it fuses an addition and the LayerNorm that alone reads it
    takes four times as long as the two together; it does not fuse over a change of shape.

    Args:
        program: with shapes on its nodes.

    Returns:
        The program.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.target == _ATEN.mean.dim and _is_over_tokens(node):
            _average_by_product(graph, node)
        elif node.target == _ATEN.layer_norm.default and _is_of_a_sum(node):
            _norm_apart(graph, node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _is_over_tokens(node: fx.Node) -> bool:
    """Whether the node averages (B, T, C) to (B, C) in the precision that it reads."""
    tokens = value_of(node.args[0])
    return (
        tokens.dim() == 3
        and [int(axis) % 3 for axis in cast(list[int], node.args[1])] == [1]
        and value_of(node).dim() == 2
        and value_of(node).dtype == tokens.dtype == torch.float32
    )


def _average_by_product(graph: fx.Graph, node: fx.Node) -> None:
    tokens = input_of(node)
    value = value_of(tokens)
    with graph.inserting_before(node):
        count: Any = value.shape[1]
        if not isinstance(count, int):
            count = graph.call_function(_ATEN.sym_size.int, (tokens, 1))
            count.meta = {**node.meta, "val": value.shape[1]}
        ones = graph.call_function(_ATEN.full.default, ([1, count], 1.0), {"dtype": value.dtype})
        row = value.new_ones(1, value.shape[1])
        total = graph.call_function(_ATEN.sum.default, (ones,))
        shares = graph.call_function(_ATEN.div.Tensor, (ones, total))
        product = graph.call_function(_ATEN.matmul.default, (shares, tokens))  # (B, 1, C)
        mean = graph.call_function(_ATEN.squeeze.dim, (product, 1))
    for new, like in ((ones, row), (total, row.sum()), (shares, row)):
        describe(new, node, like)
    describe(product, node, value_of(node).unsqueeze(1))
    describe(mean, node, value_of(node))
    node.replace_all_uses_with(mean)
    graph.erase_node(node)


def _is_of_a_sum(node: fx.Node) -> bool:
    """Whether the node alone reads an addition."""
    source = node.args[0]
    return (
        isinstance(source, fx.Node)
        and source.target == _ATEN.add.Tensor
        and len(source.users) == 1
        and value_of(source).dim() == 3
    )


def _norm_apart(graph: fx.Graph, node: fx.Node) -> None:
    source = input_of(node)
    with graph.inserting_before(node):
        one = graph.call_function(_ATEN.unsqueeze.default, (source, 0))
        norm = graph.call_function(
            _ATEN.layer_norm.default, (one, *node.args[1:]), dict(node.kwargs)
        )
        back = graph.call_function(_ATEN.squeeze.dim, (norm, 0))
    for new, like in ((one, value_of(source).unsqueeze(0)), (norm, value_of(node).unsqueeze(0))):
        describe(new, node, like)
    describe(back, node, value_of(node))
    node.replace_all_uses_with(back)
    graph.erase_node(node)
