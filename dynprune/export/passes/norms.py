"""Let the products behind a norm do without a bias: a norm's channels sum to zero."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from torch.export import ExportedProgram

from dynprune.export.passes.nodes import (
    MOVES,
    SAME,
    VIEWS,
    emit,
    input_of,
    is_fixed,
    moved,
    origin,
    value_of,
)

__all__ = ["absorb_norms", "scale_keys"]

_ATEN = torch.ops.aten
_CONVOLUTION = (None, None, None, (1, 1), (0, 0), (1, 1), 1)  # arguments, where none are given

OFFSET = 0.5
"""What every channel of a norm's output is raised by: enough to carry a bias, little beside 1."""


@dataclass(frozen=True)
class _Rows:
    """The rows of a linear that a gate chose and scaled.

    Attributes:
        select: the node that chooses the rows of the weight.
        bias: what the bias is chosen of, or None.
    """

    select: fx.Node
    bias: fx.Node | None

    @property
    def weight(self) -> fx.Node:
        """What rows are chosen of, (rows, C)."""
        return input_of(self.select)


def absorb_norms(program: ExportedProgram) -> ExportedProgram:
    r"""Move a norm's scale and shift, and the bias of gated linears, into weights, in place.

    With :math:`\hat x` the normalised tokens, whose C channels sum to zero, and any
    :math:`\delta`,

    .. math::
        W (\gamma \hat x + \beta) + b = (W \gamma + u 1^T)(\hat x + \delta), \qquad
        u = (W \beta + b - \delta W \gamma) / (C \delta)

    exactly, for each row of W, so that chosen rows bring their bias along. Engines add a constant
    bias while they multiply, but one that was gathered in a pass of its own over the output.
    Convolutions without padding, plain linears and averages over tokens that read the same norm
    are rewritten to suit; a norm with any other reader stays.

    Args:
        program: after `simplify_movements`, with shapes on its nodes.

    Returns:
        The program.
    """
    for node in list(program.graph.nodes):
        if node.target != _ATEN.layer_norm.default or not _is_plain(node):
            continue
        readers = list(_readers(node, value_of(node).dim() - 1))
        known = [reader for reader in readers if reader is not None]
        if len(known) == len(readers) and any(_chosen(reader) for reader in known):
            _absorb(program.graph, node, known)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _is_plain(norm: fx.Node) -> bool:
    """Whether the norm goes over the last axis alone, and scales and shifts by parameters."""
    _, shape, weight, bias, *_ = (*norm.args, None, None)
    return len(cast(list[int], shape)) == 1 and is_fixed(weight) and is_fixed(bias)


def _readers(node: fx.Node, axis: int) -> Iterator[fx.Node | None]:
    """Yield all that read these channels through movements; None for one that cannot be suited."""
    for user in node.users:
        at = moved(user, axis)
        if at is not None:
            yield from _readers(user, at)
        else:
            yield user if _suits(user, node, axis) else None


def _suits(reader: fx.Node, node: fx.Node, axis: int) -> bool:
    """Whether a reader can take normalised channels instead."""
    if reader.args[0] is not node or reader.all_input_nodes.count(node) != 1:
        return False
    last = value_of(node).dim() - 1
    if reader.target == _ATEN.linear.default:
        plain = is_fixed(reader.args[1]) and _is_fixed_or_none(_bias(reader))
        return axis == last and (plain or _chosen(reader) is not None)
    if reader.target == _ATEN.conv2d.default:
        padding, _, groups = [*reader.args, *_CONVOLUTION[len(reader.args) :]][4:]
        padded = any(cast(Any, padding)) or groups != 1
        return (
            axis == 1
            and not padded
            and is_fixed(reader.args[1])
            and _is_fixed_or_none(_bias(reader))
        )
    if reader.target == _ATEN.mean.dim:
        axes = {int(a) % (last + 1) for a in cast(list[int], reader.args[1])}
        return axis == last and last not in axes and not reader.kwargs
    return False


def _bias(node: fx.Node) -> fx.Node | None:
    return cast(fx.Node | None, node.args[2]) if len(node.args) > 2 else None


def _is_fixed_or_none(node: Any) -> bool:
    return node is None or is_fixed(node)


def _chosen(linear: fx.Node) -> _Rows | None:
    """Return the chosen rows of a linear, where its bias was chosen and scaled like its weight."""
    if linear.target != _ATEN.linear.default:
        return None
    weight, bias = linear.args[1], _bias(linear)
    rows = _select(weight)
    if rows is None or bias is None:
        return None if rows is None else _Rows(rows[0], None)
    shifts = _select(bias)
    if shifts is None or shifts[1] != rows[1]:
        return None
    return _Rows(rows[0], cast(fx.Node, shifts[0].args[0]))


def _select(node: Any) -> tuple[fx.Node, list[fx.Node]] | None:
    """Follow a weight (1, K, C) or bias (1, K) back to where its rows were chosen.

    Returns:
        The node that chose, and all that it was scaled and chosen by.
    """
    by: list[fx.Node] = []
    while isinstance(node, fx.Node) and len(node.users) == 1:
        if node.target == _ATEN.index_select.default and node.args[1] == 0:
            by.append(origin(node.args[2]))
            return (node, by) if is_fixed(node.args[0]) else None
        if node.target == _ATEN.mul.Tensor and _scales_rows(node):
            by.append(origin(node.args[1]))
        elif node.target not in {*VIEWS, *SAME}:
            return None
        node = node.args[0]
    return None


def _scales_rows(product: fx.Node) -> bool:
    """Whether (1, K, C) is multiplied by (1, K, 1), or (1, K) by as much."""
    rows, scale = product.args
    if not isinstance(scale, fx.Node) or value_of(scale).dim() != value_of(rows).dim():
        return False
    wanted = [*value_of(rows).shape]
    wanted[2:] = [1] * len(wanted[2:])
    return list(map(str, value_of(scale).shape)) == list(map(str, wanted))


def _absorb(graph: fx.Graph, norm: fx.Node, readers: Sequence[fx.Node]) -> None:
    """Normalise alone where the norm scaled and shifted, and suit its readers."""
    x, shape, gamma, beta, *rest = norm.args
    with graph.inserting_before(norm):
        low = emit(graph, norm, _ATEN.mul.Tensor, gamma, OFFSET)
        shift = emit(graph, norm, _ATEN.sub.Tensor, beta, low)  # beta - delta gamma
        ones = emit(graph, norm, _ATEN.ones_like.default, gamma)
        raised = emit(graph, norm, _ATEN.full_like.default, beta, OFFSET)
        new = emit(graph, norm, _ATEN.layer_norm.default, x, shape, ones, raised, *rest)
    for reader in readers:
        if reader.target == _ATEN.mean.dim:
            _suit_mean(graph, reader, gamma, shift)
        elif (rows := _chosen(reader)) is not None:
            _suit_chosen(graph, reader, rows, gamma, shift)
        else:
            _suit_fixed(graph, reader, gamma, shift)
    norm.replace_all_uses_with(new)
    graph.erase_node(norm)


def _suit_mean(graph: fx.Graph, mean: fx.Node, gamma: Any, shift: fx.Node) -> None:
    with graph.inserting_after(mean):
        scaled = emit(graph, mean, _ATEN.mul.Tensor, mean, gamma)
    with graph.inserting_after(scaled):
        new = emit(graph, mean, _ATEN.add.Tensor, scaled, shift)
    mean.replace_all_uses_with(new, delete_user_cb=lambda user: user is not scaled)


def _suit_chosen(graph: fx.Graph, linear: fx.Node, rows: _Rows, gamma: Any, shift: Any) -> None:
    """Choose from rows that bring their bias along."""
    with graph.inserting_before(rows.select):
        scaled = emit(graph, linear, _ATEN.mul.Tensor, rows.weight, gamma)
        stands = emit(graph, linear, _ATEN.linear.default, shift, rows.weight, rows.bias)
        carried = emit(graph, linear, _ATEN.div.Tensor, stands, OFFSET * value_of(gamma).numel())
        column = emit(graph, linear, _ATEN.unsqueeze.default, carried, 1)
        new = emit(graph, linear, _ATEN.add.Tensor, scaled, column)
    rows.select.update_arg(0, new)
    linear.args = linear.args[:2]


def _suit_fixed(graph: fx.Graph, layer: fx.Node, gamma: Any, shift: fx.Node) -> None:
    """Scale a weight's input channels, and let the bias make up for the shift."""
    x, weight, bias, *rest = (*layer.args, None)[: max(3, len(layer.args))]
    channels, matrix = gamma, weight
    with graph.inserting_before(layer):
        if layer.target == _ATEN.conv2d.default:
            for axis in (1, 2):
                channels = emit(graph, layer, _ATEN.unsqueeze.default, channels, axis)
            matrix = emit(graph, layer, _ATEN.sum.dim_IntList, weight, [2, 3])
        scaled = emit(graph, layer, _ATEN.mul.Tensor, weight, channels)
        stands = emit(graph, layer, _ATEN.linear.default, shift, matrix, bias)
    layer.args = (x, scaled, stands, *rest)


def scale_keys(program: ExportedProgram) -> ExportedProgram:
    """Multiply the rows that gates choose keys' weights from by attention's scale, in place.

    Args:
        program: after `absorb_norms`, with shapes on its nodes.

    Returns:
        The program.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.target != _ATEN.scaled_dot_product_attention.default:
            continue
        rows = _rows_of_keys(node)
        if rows is None:
            continue
        scale = node.kwargs.get("scale") or value_of(node.args[0]).shape[-1] ** -0.5
        with graph.inserting_before(rows.select):
            scaled = emit(graph, rows.select, _ATEN.mul.Tensor, rows.weight, scale)
        rows.select.update_arg(0, scaled)
        node.kwargs = {**node.kwargs, "scale": 1.0}
    program.graph_module.recompile()
    return program


def _rows_of_keys(attention: fx.Node) -> _Rows | None:
    """Return the chosen rows that make the keys of one attention alone, without a bias."""
    node: Any = attention.args[1]
    while isinstance(node, fx.Node) and node.target in MOVES and len(node.users) == 1:
        node = node.args[0]
    if not isinstance(node, fx.Node) or len(node.users) > 1 or _bias(node) is not None:
        return None
    return _chosen(node)
