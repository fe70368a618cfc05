"""Store the weights that gates gather from in bfloat16, for arithmetic in bfloat16."""

from collections import defaultdict

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["gathered_in_bfloat16"]

_GATHERS = {"Gather", "GatherND", "GatherElements"}


def gathered_in_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model, with the weights that are only ever gathered from in bfloat16.

    An engine that computes in bfloat16 converts constant weights once, when it loads the file, but
    gathered ones at every call. The values are those that it would round to itself.

    Args:
        model: one graph; weights inside loops stay as they are.
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    readers: defaultdict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for place, name in enumerate(node.input):
            readers[name].append((node, place))
    stored: set[str] = set()
    for weight in graph.initializer:
        uses = readers[weight.name]
        if weight.data_type != TensorProto.FLOAT or not uses:
            continue
        if all(node.op_type in _GATHERS and place == 0 for node, place in uses):
            weight.CopyFrom(_rounded(weight))
            stored.add(weight.name)
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(NodeProto())
        nodes[-1].CopyFrom(node)
        if node.op_type in _GATHERS and node.input[0] in stored:
            (name,) = node.output
            nodes[-1].output[0] = f"{name}/bfloat16"
            nodes.append(
                helper.make_node(
                    "Cast", [f"{name}/bfloat16"], [name], f"{node.name}/float", to=TensorProto.FLOAT
                )
            )
    del graph.node[:]
    graph.node.extend(nodes)
    return new


def _rounded(weight: TensorProto) -> TensorProto:
    """Round float32 to the nearest bfloat16, ties to even."""
    bits = numpy_helper.to_array(weight).view(np.uint32)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    new = TensorProto(name=weight.name, data_type=TensorProto.BFLOAT16, dims=list(weight.dims))
    new.raw_data = upper.astype("<u2").tobytes()
    return new
