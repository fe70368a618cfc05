"""Elementwise operations: activations pass neurons on, sums and products tie them together."""

import re
from typing import Any

import torch
from torch import Tensor, fx

from dynprune.graph.beside import branch_beside
from dynprune.graph.labels import compact, ids, overlay, varying
from dynprune.graph.walk import Labels, Rule, Walk, operation

__all__ = ["ADDED", "POINTWISE"]

#: Why a residual stream is none of a layer's own neurons.
ADDED = "added to values that no linear layer of its own makes"

#: Functions of one value that map zero to zero.
_KEEP_ZERO = (
    "abs", "asinh", "atan", "celu", "elu", "erf", "expm1", "gelu", "hardshrink",
    "hardswish", "leaky_relu", "log1p", "mish", "neg", "relu", "relu6", "round", "selu", "silu",
    "sin", "sinh", "softshrink", "sqrt", "square", "tan", "tanh", "to", "_to_copy",
    "type_as", "nan_to_num", "rrelu", "prelu", "native_dropout", "positive",
    "_prelu_kernel", "floor", "ceil", "trunc", "sign",
)  # fmt: skip

#: Functions of one value that do not, or need not.
_MOVE_ZERO = (
    "clamp", "clamp_max", "clamp_min", "cos", "cosh", "exp", "exp2", "hardsigmoid", "hardtanh",
    "log", "log2", "log10", "log_sigmoid", "logit", "pow", "reciprocal", "rsqrt", "sigmoid",
    "softplus", "threshold",
)  # fmt: skip


def _unary(walk: Walk, node: fx.Node) -> Labels:
    source = node.args[0]
    labels = walk.labels(source)
    name = operation(node)
    if name != "type_as":  # Of the other value it takes the type alone.
        walk.disqualify_others(node, source)
    if labels is None:
        return None
    if name in _MOVE_ZERO and not _keeps_zero(walk, node):
        walk.propagation.shifts.append((ids(labels).long().numpy(), name))
    if name in ("prelu", "_prelu_kernel") and max(walk.shape(node.args[1])) > 1:  # type: ignore[arg-type]
        _note_parameter(walk, node.args[1], labels)
    if isinstance(node.meta["val"], tuple | list):
        return [labels] + [None] * (len(node.meta["val"]) - 1)
    return labels


def _keeps_zero(walk: Walk, node: fx.Node) -> bool:
    """Whether a function with numeric arguments maps zero to zero."""
    name, a = operation(node), walk.arguments(node)
    if name == "pow":
        return isinstance(a["exponent"], int | float) and a["exponent"] > 0
    if name == "hardtanh":
        return a["min_val"] <= 0 <= a["max_val"]
    if name == "clamp":
        low, high = a["min"], a["max"]
        numbers = all(bound is None or isinstance(bound, int | float) for bound in (low, high))
        return numbers and (low is None or low <= 0) and (high is None or high >= 0)
    return False


def _product(walk: Walk, node: fx.Node) -> Labels:
    """Multiply or divide: a neuron times anything stays that neuron."""
    a = walk.arguments(node)
    left, right = a["self"], a["other"]
    if operation(node) == "div" and walk.labels(right) is not None:
        walk.propagation.shifts.append((ids(walk.labels(right)).long().numpy(), "div"))  # type: ignore[arg-type]
    return _combine(walk, node, left, right, by_sum=False)


def _sum(walk: Walk, node: fx.Node) -> Labels:
    """Add, subtract or take the larger: the neurons become one."""
    a = walk.arguments(node)
    left, right = a["self"], a["other"]
    made = walk.labels(left) if walk.labels(left) is not None else walk.labels(right)
    if made is not None and walk.adds_own_bias(node):
        return _raise(made, walk.shape(node))  # A part of the layer.
    if operation(node) in ("add", "sub") and _joins_branch(walk, node, left, right):
        return _combine(walk, node, left, right, by_sum=False)
    return _combine(walk, node, left, right, by_sum=True)


def _joins_branch(walk: Walk, node: fx.Node, left: Any, right: Any) -> bool:
    """Whether a sum adds a branch to the layer it stands beside; its ranks are then no neurons."""
    sides = [walk.labels(side) for side in (left, right)]
    if any(side is None or side.shape != walk.shape(node) for side in sides):
        return False
    branch = branch_beside(walk, left, right)
    if branch is None:
        return False
    for maker in branch.makers:
        walk.propagation.beside[maker] = branch.base
    for layer in branch.inner:
        if layer.outputs * 2 <= min(branch.base.inputs, branch.base.outputs):
            reason = f"a branch of low rank beside {branch.base.module}, which is one layer with it"
            walk.propagation.disqualify(walk.propagation.made_by(layer), reason)
    return True


def _where(walk: Walk, node: fx.Node) -> Labels:
    a = walk.arguments(node)
    walk.disqualify([a["condition"]], "decides a branch (where)")
    return _combine(walk, node, a["self"], a["other"], by_sum=True)


def _masked_fill(walk: Walk, node: fx.Node) -> Labels:
    a = walk.arguments(node)
    labels = walk.labels(a["self"])
    walk.disqualify_others(node, a["self"])
    if labels is None:
        return None
    if a["value"] != 0:
        walk.propagation.shifts.append((ids(labels).long().numpy(), "masked_fill"))
    return labels.expand(walk.shape(node))


def _fused(walk: Walk, node: fx.Node) -> Labels:
    """The forms ``self + value * a * b`` (`addcmul`) and ``lerp``."""
    walk.disqualify(
        node.all_input_nodes, f"passes through {operation(node)}, of which nothing is known"
    )
    return None


def _to_complex(walk: Walk, node: fx.Node) -> Labels:
    """Read pairs as complex numbers (rotary positions): the two of a pair become one neuron."""
    labels = walk.labels(node.args[0])
    if labels is None:
        return None
    real, imaginary = labels.unbind(-1)
    return _meet(walk, real, imaginary, by_sum=False)


def _to_real(walk: Walk, node: fx.Node) -> Labels:
    """Read complex numbers as pairs."""
    labels = walk.labels(node.args[0])
    return None if labels is None else labels[..., None].expand(walk.shape(node))


#: How the tracer calls tensors that the model's code makes by itself.
_CONSTANT = re.compile(r"(c_)?_?(lifted_)?tensor(_constant)?_?\d+$")


def _nothing(_: Walk, __: fx.Node) -> Labels:
    return None


def _combine(walk: Walk, node: fx.Node, left: Any, right: Any, *, by_sum: bool) -> Labels:
    shape = walk.shape(node)
    a, b = walk.labels(left), walk.labels(right)
    if a is None and b is None:
        return None
    if a is not None and b is not None:
        return _meet(walk, _raise(a, shape), _raise(b, shape), by_sum=by_sum)
    labels, other = (a, right) if a is not None else (b, left)
    assert labels is not None
    out = _raise(labels, shape)
    if by_sum:
        walk.propagation.shifts.append((ids(labels).long().numpy(), operation(node)))
    if isinstance(other, fx.Node) and _changes_along(walk.shape(other), out):
        if by_sum and walk.depends_on_data(other):
            walk.propagation.disqualify(labels, ADDED)
        else:
            _note_parameter(walk, other, labels)
    return out


def _raise(labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Broadcast labels to a result's shape."""
    return labels.expand(shape)


def _changes_along(shape: tuple[int, ...], labels: Tensor) -> bool:
    """Whether a tensor of this shape has a value of its own for each neuron."""
    full = (1,) * (labels.dim() - len(shape)) + shape
    return any(full[axis] > 1 for axis in varying(labels))


def _note_parameter(walk: Walk, node: Any, labels: Tensor) -> None:
    known = [name for name in (*walk.names(node), *walk.sources(node)) if not _CONSTANT.match(name)]
    name = known[0] if known else f"a constant of {walk.scope(node) or 'the model'}"
    walk.propagation.parameters.append((name, ids(labels).long().numpy()))


def _meet(walk: Walk, a: Tensor, b: Tensor, *, by_sum: bool) -> Tensor:
    """Tie the neurons of two tensors position by position."""
    along_a, along_b = set(varying(a)), set(varying(b))
    small_a, small_b = torch.broadcast_tensors(compact(a), compact(b))
    spread_a = not along_b <= along_a and _meets_several(small_a, small_b)
    spread_b = not along_a <= along_b and _meets_several(small_b, small_a)
    for labels, spread in ((a, spread_a), (b, spread_b)):
        if spread:
            walk.propagation.disqualify(
                labels, ADDED if by_sum else "it scales several channels at once"
            )
    if spread_a or spread_b:
        return a if not spread_a else b
    walk.propagation.tie(small_a, small_b, by_sum=by_sum)
    if bool(((small_a == 0) ^ (small_b == 0)).any()):
        unmatched = torch.where(small_b == 0, small_a, 0) + torch.where(small_a == 0, small_b, 0)
        reason = ADDED if by_sum else "multiplied with values that no linear layer makes"
        walk.propagation.disqualify(unmatched, reason)
    return overlay(a, b)


def _meets_several(a: Tensor, b: Tensor) -> bool:
    """Whether one neuron of ``a`` stands where several of ``b`` do."""
    meet = (a != 0) & (b != 0)
    pairs = torch.stack([a[meet], b[meet]]).unique(dim=1)
    return pairs.shape[1] > len(pairs[0].unique())


POINTWISE: dict[str, Rule] = {
    **dict.fromkeys((*_KEEP_ZERO, *_MOVE_ZERO), _unary),
    **dict.fromkeys(("mul", "div", "multiply", "divide", "true_divide"), _product),
    **dict.fromkeys(("add", "sub", "rsub", "maximum", "minimum", "subtract"), _sum),
    "where": _where,
    "masked_fill": _masked_fill,
    "view_as_complex": _to_complex,
    "view_as_real": _to_real,
    "addcmul": _fused,
    "lerp": _fused,
    "_assert_tensor_metadata": _nothing,
}
