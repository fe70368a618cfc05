"""Write tensor movements so that an engine's channels-last convolutions need no transpose."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx
from torch.export import ExportedProgram

from dynprune.export.passes.nodes import describe, emit

__all__ = ["simplify_movements"]

_ATEN = torch.ops.aten
_VIEWS = {_ATEN.view.default, _ATEN.reshape.default, _ATEN._unsafe_view.default}


def simplify_movements(program: ExportedProgram) -> ExportedProgram:
    """Rewrite the movements around convolutions over tokens, in place; values do not change.

    Token models turn ``(B, H*W, C)`` into a map by ``transpose(1, 2).view(B, C, H, W)`` and back
    by ``flatten(2).transpose(1, 2)``. Engines that convolve in channels-last memory see a
    transpose of data there. Written as ``view(B, H, W, C).permute(0, 3, 1, 2)`` and back, they
    see a change of layout alone, and drop it. Views and expansions that change nothing go too.

    Args:
        program: an exported program with shapes on its nodes.

    Returns:
        The program.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in {*_VIEWS, _ATEN.expand.default} and _shape(node) == _shape(node.args[0]):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in _VIEWS and _is_to_map(node):
            _to_map(graph, node)
        elif _swaps_tokens(node) and _is_to_tokens(node.args[0]):
            _to_tokens(graph, node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _is_to_map(node: fx.Node) -> bool:
    """Whether the node views swapped tokens (B, C, N) as a map (B, C, H, W)."""
    source = node.args[0]
    return (
        _swaps_tokens(source) and len(_shape(node)) == 4 and _shape(node)[:2] == _shape(source)[:2]
    )


def _to_map(graph: fx.Graph, node: fx.Node) -> None:
    tokens = node.args[0].args[0]  # type: ignore[union-attr]
    batch, channels, height, width = cast(Sequence[Any], node.args[1])
    with graph.inserting_before(node):
        last = graph.call_function(
            _ATEN.reshape.default, (tokens, [batch, height, width, channels])
        )
        first = graph.call_function(_ATEN.permute.default, (last, [0, 3, 1, 2]))
    describe(last, node, node.meta["val"].permute(0, 2, 3, 1))
    describe(first, node, node.meta["val"])
    node.replace_all_uses_with(first)
    graph.erase_node(node)


def _is_to_tokens(node: Any) -> bool:
    """Whether the node flattens a map (B, C, H, W) into (B, C, N)."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or len(_shape(node)) != 3:
        return False
    if node.target not in {*_VIEWS, _ATEN.flatten.using_ints}:
        return False
    source = _shape(node.args[0])
    return len(source) == 4 and source[:2] == _shape(node)[:2]


def _to_tokens(graph: fx.Graph, node: fx.Node) -> None:
    image = node.args[0].args[0]  # type: ignore[union-attr]
    with graph.inserting_before(node):
        last = emit(graph, node, _ATEN.permute.default, image, [0, 2, 3, 1])
        tokens = emit(graph, node, _ATEN.flatten.using_ints, last, 1, 2)
    node.replace_all_uses_with(tokens)
    graph.erase_node(node)


def _swaps_tokens(node: Any) -> bool:
    """Whether the node swaps the last two of three axes."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or len(_shape(node)) != 3:
        return False
    if node.target == _ATEN.transpose.int:
        return {int(axis) % 3 for axis in node.args[1:3]} == {1, 2}  # type: ignore[arg-type]
    return node.target == _ATEN.permute.default and [a % 3 for a in node.args[1]] == [0, 2, 1]  # type: ignore[union-attr, operator]


def _shape(node: Any) -> tuple[str, ...]:
    """Return the shape by its symbols, so that comparing dynamic sizes guards on nothing."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(str(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()
