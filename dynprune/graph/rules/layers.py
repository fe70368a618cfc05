"""Operations with a weight: linear layers make and read neurons, per-channel ones carry them."""

import math
from typing import Any

import torch
from torch import Tensor, fx

from dynprune.graph.labels import columns, ids, varying
from dynprune.graph.propagation import Layer
from dynprune.graph.walk import Labels, Rule, Walk, operation

__all__ = ["LAYERS", "through_weight"]

#: What turns a stored weight round.
_TRANSPOSITIONS = {"mT", "numpy_T", "permute", "t", "transpose"}


def through_layer(
    walk: Walk, node: fx.Node, layer: Layer, source: fx.Node, *, axis: int, op: str, macs: int
) -> Tensor:
    """Let a layer read its input's neurons along ``axis`` and make its own there."""
    walk.runs[layer].append((node, source))
    labels = walk.labels(source)
    shape = walk.shape(node)
    read: Tensor | None = None
    if labels is not None:
        changing = varying(labels)
        read = columns(labels, axis)
        if changing and axis % labels.dim() not in changing:
            if not walk.propagation.is_disqualified(labels):
                # The layer mixes tokens, each channel by itself: the neurons pass through.
                walk.propagation.shifts.append(
                    _shift(labels, f"a linear map over another axis ({op})")
                )
                walk.product(node, op, macs, out=columns(labels, changing[0]))
                return labels.narrow(axis, 0, 1).expand(shape)
            read = None
        elif read is None:
            reason = f"its channels are mixed with other axes before {layer.module} reads them"
            walk.propagation.disqualify(labels, reason)
        else:
            walk.propagation.reads.append((layer, read.long().numpy()))
    made = walk.propagation.made_by(layer)
    walk.product(node, op, macs, out=made, contraction=read)
    view = [1] * len(shape)
    view[axis] = layer.outputs
    return made.view(view).expand(shape)


def _shift(labels: Tensor, what: str) -> Any:
    return ids(labels).long().numpy(), what


def _linear(walk: Walk, node: fx.Node) -> Labels:
    a = walk.arguments(node)
    source, weight = a["input"], a["weight"]
    walk.disqualify_others(node, source)
    return through_weight(walk, node, source, weight, transposed=False)


def through_weight(
    walk: Walk, node: fx.Node, source: fx.Node, weight: fx.Node, *, transposed: bool
) -> Labels:
    """A product with a two-dimensional weight, given as (in, out) where ``transposed``.

    The module may store it the other way round and turn it first.
    """
    outputs, inputs = walk.shape(weight)[:: -1 if transposed else 1]
    while operation(weight) in _TRANSPOSITIONS and len(walk.shape(weight)) == 2:
        weight, transposed = weight.args[0], not transposed  # type: ignore[assignment]
    layer = walk.layer(node, weight, inputs, outputs)
    layer.transposed = transposed
    macs = math.prod(walk.shape(node)) * inputs
    return through_layer(walk, node, layer, source, axis=-1, op="linear", macs=macs)


def _convolution(walk: Walk, node: fx.Node) -> Labels:
    a = walk.arguments(node)
    source, weight, groups = a["input"], a["weight"], a["groups"]
    walk.disqualify_others(node, source)
    shape = walk.shape(node)
    if a.get("transposed") or not isinstance(a["padding"], list | tuple | int | str):
        return _transposed_convolution(walk, node)
    outputs, per_group, *kernel = walk.shape(weight)
    axis = -1 - len(kernel)
    inputs = walk.shape(source)[axis]
    macs = math.prod(shape) * per_group * math.prod(kernel)
    if groups == inputs and groups > 1:
        return _depthwise(walk, node, source, weight, axis=axis, macs=macs)
    layer = walk.layer(node, weight, inputs, outputs)
    fault = _convolution_fault(a, kernel, layer.module)
    if fault is not None:
        layer.is_linear = False
        layer.faults += [] if fault in layer.faults else [fault]
    return through_layer(walk, node, layer, source, axis=axis, op="conv", macs=macs)


def _convolution_fault(a: dict[str, Any], kernel: list[int], module: str) -> str | None:
    """Why a convolution is not a linear layer, or None for a plain 1x1 one."""
    if any(size != 1 for size in kernel):
        return f"{module} is a convolution of {'x'.join(map(str, kernel))} pixels"
    if a["groups"] != 1:
        return f"{module} is a convolution in {a['groups']} groups"
    padding = a["padding"]
    flat = [padding] if isinstance(padding, int | str) else list(padding)
    stride = [a["stride"]] if isinstance(a["stride"], int) else list(a["stride"])
    if any(p not in (0, "valid", "same") for p in flat) or any(s != 1 for s in stride):
        return f"{module} is a convolution with a stride or padding"
    return None


def _transposed_convolution(walk: Walk, node: fx.Node) -> Labels:
    a = walk.arguments(node)
    source, weight = a["input"], a["weight"]
    inputs, per_group, *kernel = walk.shape(weight)
    axis = -1 - len(kernel)
    outputs = per_group * int(a["groups"])
    layer = walk.layer(node, weight, inputs, outputs)
    fault = f"{layer.module} is a transposed convolution"
    layer.is_linear = False
    layer.faults += [] if fault in layer.faults else [fault]
    macs = math.prod(walk.shape(source)) * per_group * math.prod(kernel)
    return through_layer(walk, node, layer, source, axis=axis, op="conv", macs=macs)


def _depthwise(
    walk: Walk, node: fx.Node, source: fx.Node, weight: fx.Node, *, axis: int, macs: int
) -> Labels:
    labels = walk.labels(source)
    shape = walk.shape(node)
    channels = columns(labels, axis) if labels is not None else None
    if channels is None:
        if labels is not None:
            walk.propagation.disqualify(labels, f"its channels are not those of {walk.scope(node)}")
        walk.product(node, "depthwise", macs)
        return None
    channels = channels.repeat_interleave(shape[axis] // len(channels))
    carry(walk, node, weight, channels)
    walk.product(node, "depthwise", macs, out=channels)
    view = [1] * len(shape)
    view[axis] = len(channels)
    return channels.view(view).expand(shape)


def carry(walk: Walk, node: fx.Node, weight: Any, channels: Tensor) -> None:
    """Report a per-channel layer: as a carrier if it is a module of its own."""
    walk.propagation.shifts.append(_shift(channels, f"the bias of {walk.scope(node)}"))
    if not isinstance(weight, fx.Node):
        return
    module = walk.own_module(node, weight)
    array = channels.long().numpy()
    if module is not None:
        walk.propagation.carries.append((module, array))
    else:
        name = (walk.names(weight) or walk.sources(weight) or [weight.name])[0]
        walk.propagation.parameters.append((name, array))


def _batch_norm(walk: Walk, node: fx.Node) -> Labels:
    a = walk.arguments(node)
    source = a["input"]
    walk.disqualify_others(node, source)
    labels = walk.labels(source)
    if labels is None:
        return None
    channels = columns(labels, 1)
    if channels is None:
        walk.propagation.disqualify(labels, f"its channels are not those of {walk.scope(node)}")
        return None
    mean = a.get("running_mean")
    carry(walk, node, a["weight"] if a["weight"] is not None else mean, channels)
    multiple = isinstance(node.meta["val"], tuple | list)
    return [labels, None, None] if multiple else labels


def _group_norm(walk: Walk, node: fx.Node) -> Labels:
    a = walk.arguments(node)
    source = a["input"]
    walk.disqualify_others(node, source)
    labels = walk.labels(source)
    if labels is None:
        return None
    channels = columns(labels, 1)
    groups = a.get("num_groups", None)
    if channels is None or (groups is not None and groups != len(channels)):
        walk.propagation.disqualify(labels, "a GroupNorm mixes its channels")
    elif a["weight"] is not None:
        carry(walk, node, a["weight"], channels)
    return labels


def _layer_norm(walk: Walk, node: fx.Node) -> Labels:
    a = walk.arguments(node)
    source = a["input"]
    walk.disqualify_others(node, source)
    labels = walk.labels(source)
    if labels is None:
        return None
    normalised = range(labels.dim() - len(a["normalized_shape"]), labels.dim())
    if any(axis in normalised for axis in varying(labels)):
        kind = "RMSNorm" if "rms" in node.name else "LayerNorm"
        walk.propagation.disqualify(labels, f"a {kind} mixes its channels")
    walk.propagation.shifts.append(_shift(labels, "a norm"))
    multiple = isinstance(node.meta["val"], tuple | list)
    return [labels, None, None] if multiple else labels


def _addmm(walk: Walk, node: fx.Node) -> Labels:
    """The product ``bias + x @ weight`` with a stored weight, (in, out): a transposed linear."""
    a = walk.arguments(node)
    source, weight = a["mat1"], a["mat2"]
    walk.disqualify_others(node, source)
    return through_weight(walk, node, source, weight, transposed=True)


def _embedding(walk: Walk, node: fx.Node) -> Labels:
    walk.disqualify_others(node)
    return None


def _glu(walk: Walk, node: fx.Node) -> Labels:
    a = walk.arguments(node)
    labels = walk.labels(a["self"])
    if labels is None:
        return None
    value, gate = torch.chunk(labels, 2, int(a["dim"]))
    walk.propagation.tie(*torch.broadcast_tensors(value, gate))
    return value


LAYERS: dict[str, Rule] = {
    "linear": _linear,
    "addmm": _addmm,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "convolution": _convolution,
    "conv_transpose1d": _transposed_convolution,
    "conv_transpose2d": _transposed_convolution,
    "conv_transpose3d": _transposed_convolution,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "native_batch_norm": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "native_group_norm": _group_norm,
    "instance_norm": _group_norm,
    "layer_norm": _layer_norm,
    "native_layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "_fused_rms_norm": _layer_norm,
    "embedding": _embedding,
    "glu": _glu,
}
