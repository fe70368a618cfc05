"""Operations that move values: they run literally on the label tensor."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dynprune.graph.labels import compact, tidy, varying
from dynprune.graph.walk import Labels, Rule, Walk

__all__ = ["MOVES"]

#: Moves that ATen can run on integer labels as they are.
_LITERAL = (
    "alias", "chunk", "constant_pad_nd", "diagonal", "expand", "expand_as", "flatten", "flip",
    "movedim", "narrow", "numpy_T", "permute", "pixel_shuffle", "pixel_unshuffle", "repeat",
    "repeat_interleave", "reshape", "roll", "select", "slice",
    "split", "split_with_sizes", "squeeze", "stack", "swapaxes", "t", "tensor_split", "tile",
    "transpose", "unbind", "unflatten", "unfold", "unsqueeze", "view", "view_as", "_unsafe_view",
    "mT", "cat", "concat", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes", "matrix_H",
    "adjoint", "moveaxis", "swapdims", "reshape_as", "hstack", "vstack", "channel_shuffle",
    "native_channel_shuffle",
)  # fmt: skip

#: Moves that leave every value in its place.
_STILL = ("clone", "contiguous", "detach", "lift_fresh_copy", "dropout", "feature_dropout")

#: Literal moves that only shuffle positions along axes on which labels may well be constant.
_SHUFFLES = {"roll", "flip"}


def _literal(walk: Walk, node: fx.Node) -> Labels:
    if all(walk.labels(used) is None for used in node.all_input_nodes):
        return None
    name = node.target._schema.name  # type: ignore[union-attr]

    def labels_of(argument: Any) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        found = walk.labels(argument)
        if found is None:
            return torch.zeros((), dtype=torch.int32).expand(walk.shape(argument))
        return found

    args, kwargs = pytree.tree_map(labels_of, (node.args, dict(node.kwargs)))
    first = args[0]
    if name.endswith(("::view", "::_unsafe_view")):
        return args[0].reshape(args[1])
    if isinstance(first, Tensor) and name.rpartition("::")[2] in _SHUFFLES:
        dims = args[-1] if len(args) > 1 else []
        dims = [dims] if isinstance(dims, int) else dims
        if dims and not any(d % first.dim() in varying(first) for d in dims):
            return first
    if name.endswith("::cat"):
        return _cat(*args, **kwargs)
    if name.endswith("::constant_pad_nd"):
        return _pad(first, args[1])
    out = node.target(*args, **kwargs)  # type: ignore[operator]
    return list(out) if isinstance(out, tuple | list) else out


def _cat(parts: list[Tensor], dim: int = 0) -> Tensor:
    """Concatenate, at no cost in memory along axes on which labels do not change."""
    parts = [tidy(part) for part in parts if part.numel()]
    shape = list(parts[0].shape)
    dim %= len(shape)
    lengths = [part.shape[dim] for part in parts]
    shape[dim] = sum(lengths)
    small = [compact(part) for part in parts]
    alike = all(part.shape[dim] == 1 for part in small)
    if alike and all(torch.equal(small[0], part) for part in small[1:]):
        return small[0].expand(shape)
    sizes = [max(part.shape[axis] for part in small) for axis in range(len(shape))]
    full = []
    for part, length in zip(small, lengths, strict=True):
        sizes[dim] = length
        full.append(part.expand(sizes))
    return torch.cat(full, dim).expand(shape)


def _pad(labels: Tensor, pad: list[int]) -> Tensor:
    """Pad: beside axes of constant labels, padding carries the same labels."""
    changing = varying(labels)
    for i in range(0, len(pad), 2):
        axis = labels.dim() - 1 - i // 2
        if axis in changing:
            amount = [0] * (2 * (labels.dim() - axis))
            amount[-2:] = pad[i : i + 2]
            labels = torch.nn.functional.pad(labels, amount)
        else:
            shape = list(labels.shape)
            shape[axis] += pad[i] + pad[i + 1]
            labels = labels.narrow(axis, 0, 1).expand(shape)
    return labels


def _pad_mode(walk: Walk, node: fx.Node) -> Labels:
    """Pad in any mode: exact beside axes of constant labels, else only for zeros."""
    a = walk.arguments(node)
    labels = walk.labels(a["self"])
    if labels is None:
        return None
    pad = list(a["pad"] if "pad" in a else a["padding"])
    axes = {labels.dim() - 1 - i for i in range(len(pad) // 2)}
    if axes & set(varying(labels)) and a.get("mode", "constant") != "constant":
        walk.propagation.disqualify(labels, "its channels are padded by other channels")
        return None
    return _pad(labels, pad)


def _overwrite(walk: Walk, node: fx.Node) -> Labels:
    """Write one tensor into a part of another (an assignment to a slice)."""
    a = walk.arguments(node)
    labels, source = walk.labels(a["self"]), walk.labels(a["src"])
    walk.disqualify_others(node, a["self"], a["src"])
    axis = int(a["dim"])
    for found in (labels, source):
        if found is not None and axis % len(walk.shape(node)) in varying(found):
            walk.propagation.disqualify(found, "some of its channels are overwritten in place")
    if labels is None or source is None:
        walk.propagation.disqualify(
            labels if labels is not None else source, "overwritten in place"
        )
    return _literal(walk, node)


def _still(walk: Walk, node: fx.Node) -> Labels:
    walk.disqualify_others(node, node.args[0])
    return walk.labels(node.args[0])


def _index(walk: Walk, node: fx.Node) -> Labels:
    """Advanced indexing: literal where the indices are known, else only on constant axes."""
    a = walk.arguments(node)
    labels = walk.labels(a["self"])
    walk.disqualify_others(node, a["self"])
    if labels is None:
        return None
    indices: list[Tensor | None] = []
    for axis, index in enumerate(a["indices"]):
        if index is None:
            indices.append(None)
            continue
        known = walk.constant(index)
        meta = index.meta["val"]
        if known is not None:
            indices.append(known.to("cpu"))
        elif axis not in varying(labels) and meta.dtype != torch.bool:
            indices.append(torch.zeros(meta.shape, dtype=torch.int64))
        else:
            walk.propagation.disqualify(labels, "indexed by values that depend on the input")
            return None
    return torch.ops.aten.index(labels, indices)


def _gather_axis(walk: Walk, node: fx.Node) -> Labels:
    """Pick along one axis (`index_select`, `gather`)."""
    a = walk.arguments(node)
    labels, index = walk.labels(a["self"]), a["index"]
    walk.disqualify_others(node, a["self"])
    if labels is None:
        return None
    dim = int(a["dim"]) % labels.dim()
    shape = walk.shape(node)
    if dim not in varying(labels):
        front = labels.narrow(dim, 0, 1)
        for axis, size in enumerate(shape):
            if axis != dim and front.shape[axis] != size:
                front = front.narrow(axis, 0, size)
        return front.expand(shape)
    known = walk.constant(index)
    if known is not None:
        return node.target(labels, dim, known.to("cpu"))  # type: ignore[operator]
    walk.propagation.disqualify(labels, "indexed by values that depend on the input")
    return None


MOVES: dict[str, Rule] = {
    **dict.fromkeys(_LITERAL, _literal),
    **dict.fromkeys(_STILL, _still),
    "slice_scatter": _overwrite,
    "select_scatter": _overwrite,
    "pad": _pad_mode,
    "reflection_pad1d": _pad_mode,
    "reflection_pad2d": _pad_mode,
    "replication_pad1d": _pad_mode,
    "replication_pad2d": _pad_mode,
    "index": _index,
    "index_select": _gather_axis,
    "gather": _gather_axis,
}
