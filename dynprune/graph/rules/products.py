"""Products of two activations: QK^T, where neurons meet, and attention times V."""

import math

import torch
from torch import Tensor, fx

from dynprune.graph.labels import compact, tidy, varying
from dynprune.graph.propagation import Attention
from dynprune.graph.rules.layers import through_weight
from dynprune.graph.walk import Labels, Rule, Walk

__all__ = ["PRODUCTS"]


def _attention(walk: Walk, node: fx.Node) -> Labels:
    """Scaled dot-product attention, counted as its two products."""
    a = walk.arguments(node)
    query, key, value = a["query"], a["key"], a["value"]
    walk.disqualify_others(node, query, key, value)
    *batch, tokens, width = walk.shape(query)
    span = walk.shape(key)[-2]
    heads = batch[-1] if batch else 1
    labels = [_spread_heads(walk.labels(x), heads) for x in (query, key, value)]
    qk = math.prod(batch) * tokens * span * width
    av = math.prod(batch) * tokens * span * walk.shape(value)[-1]
    met = _contract(walk, labels[0], labels[1])
    walk.product(node, "qk", qk, contraction=met)
    out, rows = _pass_values(walk, labels[2], walk.shape(node))
    if rows is not None:
        walk.propagation.values.append(rows.long().numpy())
    walk.product(node, "av", av, out=rows)
    _note(walk, node, (met, labels[:2]), (rows, labels[2:]))
    return out


Met = tuple[Tensor | None, list[Tensor | None]]


def _note(walk: Walk, node: fx.Node, scored: Met, valued: Met = (None, [])) -> None:
    """Note a product of two activations, with the rows of its heads and the labels of its sides."""
    plain = all(
        axis >= side.dim() - 3
        for _, sides in (scored, valued)
        for side in sides
        if side is not None
        for axis in varying(side)
    )
    rows = [None if met is None else met.long().numpy() for met in (scored[0], valued[0])]
    walk.propagation.attentions.append(Attention(walk.scope(node), rows[0], rows[1], plain))


def _spread_heads(labels: Tensor | None, heads: int) -> Tensor | None:
    """Repeat the key and value heads of grouped-query attention for each query head."""
    if labels is None or labels.dim() < 3 or labels.shape[-3] in (1, heads):
        return labels
    return tidy(labels.repeat_interleave(heads // labels.shape[-3], -3))


def _contract(walk: Walk, q: Tensor | None, k: Tensor | None) -> Tensor | None:
    """Let queries (..., N, d) meet keys (..., M, d) slot by slot.

    Returns:
        Ids of the slots of every head, (heads, d), if all is well.
    """
    alone = "multiplied with values that no linear layer makes"
    for side in (q, k):
        if side is not None and side.dim() - 2 in varying(side):
            walk.propagation.disqualify(side, "its channels are mixed with tokens before a product")
            return None
    if q is None or k is None:
        walk.propagation.disqualify(q if k is None else k, alone)
        return None
    a, b = torch.broadcast_tensors(compact(q)[..., 0, :], compact(k)[..., 0, :])
    walk.propagation.tie(a, b)
    if bool(((a == 0) ^ (b == 0)).any()):
        walk.propagation.disqualify(torch.where(b == 0, a, 0), alone)
        walk.propagation.disqualify(torch.where(a == 0, b, 0), alone)
    rows = a.reshape(-1, a.shape[-1])
    walk.propagation.scores.append(rows.long().numpy())
    return rows


def _pass_values(
    walk: Walk, v: Tensor | None, shape: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Let weights (..., N, M) mix the tokens of values (..., M, d): channels stay what they are."""
    if v is None:
        return None, None
    if v.dim() - 2 in varying(v):
        walk.propagation.disqualify(v, "its channels are mixed with tokens before a product")
        return None, None
    small = compact(v)
    rows = small[..., 0, :].reshape(-1, small.shape[-1])
    return v[..., :1, :].expand(shape), rows


def _matmul(walk: Walk, node: fx.Node) -> Labels:
    first, second = _operands(walk, node)
    shapes = walk.shape(first), walk.shape(second)
    if min(len(shape) for shape in shapes) < 2:
        walk.disqualify([first, second], "multiplied with a vector")
        _note(walk, node, (None, []))
        walk.product(node, "matmul", math.prod(walk.shape(node)) * shapes[0][-1])
        return None
    if len(shapes[1]) == 2 and len(walk.sources(second)) == 1 and not walk.depends_on_data(second):
        _note(walk, node, (None, []))
        return through_weight(walk, node, first, second, transposed=True)
    return _activations(walk, node, first, second)


def _operands(walk: Walk, node: fx.Node) -> tuple[fx.Node, fx.Node]:
    a = walk.arguments(node)
    names = ("batch1", "batch2") if "batch1" in a else ("self", "other")
    names = ("self", "mat2") if "mat2" in a else names
    first, second = a[names[0]], a[names[1]]
    walk.disqualify_others(node, first, second)
    return first, second


def _activations(walk: Walk, node: fx.Node, first: fx.Node, second: fx.Node) -> Labels:
    shape = walk.shape(node)
    macs = math.prod(shape) * walk.shape(first)[-1]
    x, y = walk.labels(first), walk.labels(second)
    x_inner = x is not None and x.dim() - 1 in varying(x)
    y_inner = y is not None and y.dim() - 2 in varying(y)
    if x_inner or y_inner:
        for labels, inner in ((x, x_inner), (y, y_inner)):
            if labels is not None and not inner:
                walk.propagation.disqualify(labels, "its channels meet the tokens of another layer")
        met = _contract(
            walk, x if x_inner else None, y.transpose(-1, -2) if y_inner and y is not None else None
        )
        walk.product(node, "qk" if met is not None else "matmul", macs, contraction=met)
        _note(walk, node, (met, [x, y]))
        return None
    if y is not None:
        if x is not None:
            walk.propagation.disqualify(x, "its channels meet those of another layer in a product")
        out, rows = _pass_values(walk, y, shape)
        attends = rows is not None and walk.depends_on_data(first)
        if attends and rows is not None:
            walk.propagation.values.append(rows.long().numpy())
        walk.product(node, "av" if attends else "matmul", macs, out=rows)
        _note(walk, node, (None, []), (rows if attends else None, [y]))
        return out
    walk.product(node, "matmul", macs)
    _note(walk, node, (None, []))
    return x[..., :1].expand(shape) if x is not None else None


def _einsum(walk: Walk, node: fx.Node) -> Labels:
    """An Einstein sum that was not decomposed into products that have a rule."""
    equation, operands = walk.arguments(node)["equation"], walk.arguments(node)["tensors"]
    walk.disqualify(node.all_input_nodes, f"passes through einsum {equation!r}")
    walk.product(node, "matmul", _einsum_macs(walk, equation, operands))
    return None


def _einsum_macs(walk: Walk, equation: str, operands: list[fx.Node]) -> int:
    """Multiply-adds of an einsum of two operands: the product of all its axes."""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        if "." in term:
            return 0
        sizes.update(zip(term, walk.shape(operand), strict=True))
    return math.prod(sizes.values()) if len(terms) > 1 else 0


PRODUCTS: dict[str, Rule] = {
    "scaled_dot_product_attention": _attention,
    "matmul": _matmul,
    "bmm": _matmul,
    "mm": _matmul,
    "baddbmm": _matmul,
    "einsum": _einsum,
}
