"""Norm tokens that are known to have no mean by their root mean square alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from dynprune.export.passes.nodes import MOVES, emit, input_of, is_parameter, moved, value_of

__all__ = ["norms_to_rms_norms"]

_ATEN = torch.ops.aten

_Source = tuple[int, int]
"""Which argument of a node, and which axis of it."""


@dataclass
class _Stream:
    """Values that can lose their mean over channels together.

    Attributes:
        axes: node -> the axis of its channels.
        norms: the norms that read them.
        fixed: (node, place) -> axis of an argument that is the same for every input; it loses its
            mean before the file is written.
        moving: the same of arguments that must lose their mean at every call.
    """

    axes: dict[fx.Node, int] = field(default_factory=dict)
    norms: list[fx.Node] = field(default_factory=list)
    fixed: dict[tuple[fx.Node, int], int] = field(default_factory=dict)
    moving: dict[tuple[fx.Node, int], int] = field(default_factory=dict)


def norms_to_rms_norms(program: ExportedProgram) -> ExportedProgram:
    r"""Take the mean out of what norms read, and let them divide by the root mean square, in place.

    A norm takes the mean over its C channels from what it reads, so that the layers before it may
    leave it out:

    .. math::
        LN(W h + b) = \gamma \, RMS((I - 1 1^T / C) (W h + b)) + \beta, \qquad
        RMS(x) = x / \sqrt{x^T x / C + \epsilon}.

    So may a residual stream that norms alone read, if all that is added to it does. OpenVINO
    divides by a root mean square in less than half the time of a norm. A stream stays as it is
    where more values would lose their mean at every call than norms read it.

    Args:
        program: after `multiply_in_batches`, with shapes on its nodes.

    Returns:
        The program.
    """
    graph = program.graph
    constants = _constants(graph)
    seen: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node in seen or not _is_plain(node):
            continue
        stream = _trace(node, constants)
        seen.update(stream.norms)
        if _is_closed(stream) and len(stream.moving) < len(stream.norms):
            _centre(graph, stream)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose values are the same for every input."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            is_constant = is_parameter(node)
        else:
            is_constant = node.op == "call_function" and found.issuperset(node.all_input_nodes)
        if is_constant:
            found.add(node)
    return found


def _is_plain(node: fx.Node) -> bool:
    """Whether the node is a norm over the last axis alone, in single precision."""
    return (
        node.target == _ATEN.layer_norm.default
        and len(cast(list[int], node.args[1])) == 1
        and value_of(node).dtype == value_of(node.args[0]).dtype == torch.float32
    )


def _trace(norm: fx.Node, constants: set[fx.Node]) -> _Stream:
    """Follow what a norm reads to what it is made of, and to all that reads that."""
    stream = _Stream(norms=[norm])
    todo = _enter(stream, constants, norm, [(0, value_of(norm).dim() - 1)])
    while todo:
        node, axis = todo.pop()
        if node in stream.axes:
            continue
        stream.axes[node] = axis
        todo += _enter(stream, constants, node, _sources(node, axis) or [])
        for reader in node.users:
            if _is_plain(reader) and reader not in stream.norms:
                stream.norms.append(reader)
            at = axis if reader.target == _ATEN.add.Tensor else moved(reader, axis)
            if at is not None and _sources(reader, at) is not None:
                todo.append((reader, at))
    return stream


def _enter(
    stream: _Stream, constants: set[fx.Node], reader: fx.Node, sources: Sequence[_Source]
) -> list[tuple[fx.Node, int]]:
    """Note which arguments must lose their mean; give those that are made of others, and axes."""
    made = []
    for place, axis in sources:
        node = input_of(reader, place)
        if node in constants:
            stream.fixed[reader, place] = axis
        elif _sources(node, axis) is None:
            stream.moving[reader, place] = axis
        else:
            made.append((node, axis))
    return made


def _is_closed(stream: _Stream) -> bool:
    """Whether nothing reads these values but norms, and what loses its mean with them."""
    return all(
        _suits(reader, node, axis, stream)
        for node, axis in stream.axes.items()
        for reader in node.users
    )


def _suits(reader: fx.Node, node: fx.Node, axis: int, stream: _Stream) -> bool:
    places = {place for place, arg in enumerate(reader.args) if arg is node}
    if reader in stream.norms:
        return axis == value_of(node).dim() - 1 and places == {0}
    if reader not in stream.axes or node in reader.kwargs.values():
        return False
    sources = dict(_sources(reader, stream.axes[reader]) or [])
    return bool(places) and all(sources.get(place) == axis for place in places)


def _sources(node: fx.Node, axis: int) -> list[_Source] | None:
    """Say which arguments of a node must lose their mean for the node to lose its own.

    Returns:
        Places and axes; None for a node that does something else with channels.
    """
    if node.op != "call_function" or not isinstance(node.meta["val"], Tensor) or node.kwargs:
        return None
    last = value_of(node).dim() - 1
    both = [(1, 0), (2, 0)] if len(node.args) > 2 and node.args[2] is not None else [(1, 0)]
    if node.target in MOVES:
        befores = range(value_of(node.args[0]).dim())
        return [(0, before) for before in befores if moved(node, before) == axis] or None
    if node.target == _ATEN.add.Tensor:
        return _terms(node, axis)
    if node.target == _ATEN.matmul.default:
        return [(1, value_of(node.args[1]).dim() - 1)] if axis == last else None
    if node.target == _ATEN.linear.default:
        return both if axis == last else None
    if node.target == _ATEN.conv2d.default:
        return both if axis == 1 else None
    passes = (
        (node.target == _ATEN.dropout.default and node.args[2] is False)
        or (node.target == _ATEN.mul.Tensor and _is_even(node.args[1], node, axis))
        or (node.target == _ATEN.index_select.default and node.args[1] != axis)
    )
    return [(0, axis)] if passes else None


def _terms(total: fx.Node, axis: int) -> list[_Source] | None:
    """Return the terms of a sum, if each has all channels."""
    terms = []
    for place, term in enumerate(total.args):
        if not isinstance(term, fx.Node):
            return None
        at = axis - value_of(total).dim() + value_of(term).dim()
        if at < 0 or value_of(term).shape[at] != value_of(total).shape[axis]:
            return None
        terms.append((place, at))
    return terms


def _is_even(factor: Any, product: fx.Node, axis: int) -> bool:
    """Whether a factor is the same for all channels."""
    if not isinstance(factor, fx.Node):
        return True
    at = axis - value_of(product).dim() + value_of(factor).dim()
    return value_of(product.args[0]).shape == value_of(product).shape and (
        at < 0 or value_of(factor).shape[at] == 1
    )


def _centre(graph: fx.Graph, stream: _Stream) -> None:
    """Take the means out, and let the norms do without."""
    for (user, place), axis in [*stream.fixed.items(), *stream.moving.items()]:
        value = input_of(user, place)
        with graph.inserting_before(user):
            mean = emit(graph, user, _ATEN.mean.dim, value, [axis], True)
            centred = emit(graph, user, _ATEN.sub.Tensor, value, mean)
        user.update_arg(place, centred)
    for norm in stream.norms:
        _divide(graph, norm)


def _divide(graph: fx.Graph, norm: fx.Node) -> None:
    """Divide by the root mean square where a norm stood."""
    given: list[Any] = list(norm.args)
    x, _, scale, shift, epsilon = (given + [None, None, 1e-5][len(given) - 2 :])[:5]
    with graph.inserting_before(norm):
        square = emit(graph, norm, _ATEN.mul.Tensor, x, x)
        mean = emit(graph, norm, _ATEN.mean.dim, square, [-1], True)
        above = emit(graph, norm, _ATEN.add.Tensor, mean, epsilon)
        new = emit(graph, norm, _ATEN.div.Tensor, x, emit(graph, norm, _ATEN.sqrt.default, above))
        if scale is not None and scale.target != _ATEN.ones_like.default:
            new = emit(graph, norm, _ATEN.mul.Tensor, new, scale)
        if shift is not None:
            new = emit(graph, norm, _ATEN.add.Tensor, new, shift)
    norm.replace_all_uses_with(new)
    graph.erase_node(norm)
