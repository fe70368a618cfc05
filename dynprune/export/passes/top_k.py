"""Choose neurons by fewer small operators, which a second thread does not share."""

from operator import getitem
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from dynprune.export.passes.nodes import VIEWS, emit, input_of, is_fixed, origin, value_of

__all__ = ["fuse_top_k"]

_ATEN = torch.ops.aten
_GATHERS = {_ATEN.index_select.default, _ATEN.gather.default}


def fuse_top_k(program: ExportedProgram) -> ExportedProgram:
    """Rewrite how gates score, choose and value their neurons, in place.

    Kept neurons stay in the order of the choice where all that reads them gathers by it: the two
    sides of a group then agree in any order. Values are worked out for kept neurons alone, from
    the scores that the choice gives anyway: ``1 + beta f = beta s + (1 - beta p)`` for s = p + f.
    The prior p joins the predictor's last bias, and ``b - m W`` becomes ``b + (-m) W``, whose sign
    engines would else move onto the gathered weights.

    Args:
        program: with shapes on its nodes.

    Returns:
        The program.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.target == _ATEN._assert_tensor_metadata.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.target == _ATEN.sort.default:
            _keep_order(node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.target == _ATEN.gather.default:
            _value_kept(graph, node)
        elif node.target == _ATEN.sub.Tensor:
            _add_negated(graph, node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.target == _ATEN.add.Tensor:
            _score_in_bias(graph, node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _keep_order(sort: fx.Node) -> None:
    """Drop the sorting of a choice where only gathering reads it."""
    chosen = input_of(sort)
    results = list(sort.users)
    if len(sort.args) > 1 or sort.kwargs or [user.args[1] for user in results] != [0]:
        return
    if _choice(chosen) is not None and _only_gathers(results[0]):
        results[0].replace_all_uses_with(chosen)


def _choice(index: Any) -> fx.Node | None:
    """Return the top-r whose positions an index shows, perhaps counted from each head's first."""
    node = origin(index)
    if node.target == _ATEN.add.Tensor:
        node = origin(node.args[0])
    if node.target is not getitem or node.args[1] != 1:
        return None
    top = input_of(node)
    return top if top.target == _ATEN.topk.default else None


def _only_gathers(index: fx.Node) -> bool:
    """Whether all that reads an index takes values by it."""
    for user in index.users:
        if user.target in VIEWS or (user.target == _ATEN.add.Tensor and user.args[0] is index):
            if not _only_gathers(user):
                return False
        elif user.target not in _GATHERS or user.args[2] is not index:
            return False
    return True


def _value_kept(graph: fx.Graph, gather: fx.Node) -> None:
    """Work ``1 + beta f`` out for the kept neurons, from their scores."""
    factor, axis, index = gather.args
    top = _choice(index)
    scaled = _sum_with(factor, 1.0)
    if top is None or axis != 1 or scaled is None or scaled.target != _ATEN.mul.Tensor:
        return
    beta, f = scaled.args
    prior, same = _prior_and_f(origin(top.args[0]))
    if prior is None or not is_fixed(beta) or origin(f) is not origin(same):
        return
    with graph.inserting_before(gather):
        raised = emit(graph, gather, _ATEN.mul.Tensor, prior, beta)
        stands = emit(graph, gather, _ATEN.rsub.Scalar, raised, 1.0)
        flat = emit(graph, gather, _ATEN.flatten.using_ints, index)
        kept = emit(graph, gather, _ATEN.index_select.default, stands, 0, flat)
        kept = emit(graph, gather, _ATEN.view.default, kept, list(value_of(gather).shape))
        scores = emit(graph, gather, getitem, top, 0)
        scores = emit(graph, gather, _ATEN.view.default, scores, list(value_of(gather).shape))
        moved = emit(graph, gather, _ATEN.mul.Tensor, scores, beta)
        value = emit(graph, gather, _ATEN.add.Tensor, moved, kept)
    gather.replace_all_uses_with(value)


def _sum_with(node: Any, number: float) -> fx.Node | None:
    """Return what the node adds a number to."""
    if isinstance(node, fx.Node) and node.target == _ATEN.add.Tensor and node.args[1] == number:
        return input_of(node)
    return None


def _prior_and_f(scores: fx.Node) -> tuple[fx.Node | None, Any]:
    """Take scores ``p + f`` apart, p being fixed."""
    if scores.target != _ATEN.add.Tensor or scores.kwargs or not is_fixed(scores.args[0]):
        return None, None
    return input_of(scores), scores.args[1]


def _score_in_bias(graph: fx.Graph, scores: fx.Node) -> None:
    """Let the predictor's last linear, which nothing else reads, add the prior."""
    prior, f = _prior_and_f(scores)
    linear: Any = origin(f)
    if prior is None or not isinstance(linear, fx.Node) or linear.target != _ATEN.linear.default:
        return
    if value_of(prior).dim() != 1 or len(linear.args) < 3 or not is_fixed(linear.args[2]):
        return
    while len(f.users) == 1 and f is not linear:
        f = f.args[0]
    if len(f.users) > 1:
        return
    with graph.inserting_before(linear):
        bias = emit(graph, linear, _ATEN.add.Tensor, linear.args[2], prior)
    linear.update_arg(2, bias)
    scores.replace_all_uses_with(linear)


def _add_negated(graph: fx.Graph, difference: fx.Node) -> None:
    """Take ``b - m W`` as ``b + (-m) W``, where m was gathered from fixed means."""
    product = difference.args[1]
    while isinstance(product, fx.Node) and product.target in VIEWS and len(product.users) == 1:
        product = product.args[0]
    if not isinstance(product, fx.Node) or product.target != _ATEN.matmul.default:
        return
    means: Any = product.args[0]
    while len(product.users) == len(means.users) == 1 and (
        means.target in VIEWS or means.target == _ATEN.mul.Tensor
    ):
        means = means.args[0]
    if means.target != _ATEN.index_select.default or not is_fixed(means.args[0]):
        return
    if len(product.users) > 1 or len(means.users) > 1:
        return
    with graph.inserting_before(means):
        negated = emit(graph, means, _ATEN.neg.default, means.args[0])
    means.update_arg(0, negated)
    with graph.inserting_before(difference):
        total = emit(graph, difference, _ATEN.add.Tensor, *difference.args)
    difference.replace_all_uses_with(total)
