"""Let products of one instance keep the batch's axis, for an engine that fuses what follows."""

import torch
from torch import fx
from torch.export import ExportedProgram

from dynprune.export.passes.nodes import input_of, value_of

__all__ = ["multiply_in_batches"]

_ATEN = torch.ops.aten


def multiply_in_batches(program: ExportedProgram) -> ExportedProgram:
    """Rewrite ``linear(x.squeeze(0)).unsqueeze(0)`` as ``linear(x)``, in place.

    OpenVINO adds the bias of gathered weights, and the residual behind it, in one pass where no
    change of shape stands between; and what other layers read too need not be copied first.

    Args:
        program: with shapes on its nodes.

    Returns:
        The program.
    """
    graph = program.graph
    for node in list(graph.nodes):
        source = _batched(node)
        if source is None or any(not _restores_batch(user) for user in node.users):
            continue
        with graph.inserting_before(node):
            product = graph.call_function(_ATEN.linear.default, (source, *node.args[1:]))
        product.meta = {**node.meta, "val": value_of(node).unsqueeze(0)}
        for user in list(node.users):
            user.replace_all_uses_with(product)
            graph.erase_node(user)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _batched(node: fx.Node) -> fx.Node | None:
    """Return the (1, N, K) that a product reads as (N, K)."""
    if node.target != _ATEN.linear.default:
        return None
    rows = input_of(node)
    if rows.target != _ATEN.squeeze.dim or rows.args[1] != 0 or value_of(rows).dim() != 2:
        return None
    return input_of(rows)


def _restores_batch(user: fx.Node) -> bool:
    return bool(user.target == _ATEN.unsqueeze.default and user.args[1] == 0)
