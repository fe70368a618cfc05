"""Let a program of one instance take a batch: a copy for each instance, or an ONNX loop."""

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper

__all__ = ["COPIES", "over_instances"]

COPIES = 8
"""Instances up to which a file holds a copy of the program for each: files grow with it."""


def over_instances(model: onnx.ModelProto, batch: int | str = "batch") -> onnx.ModelProto:
    """Wrap a model of batch 1 into one that runs it on every instance of a batch.

    Every instance of a gated model multiplies by weights of its own, so that a batch is no larger
    product than its instances are. Copies of the program share the weights and run as fast as the
    program does (measured in ``docs/notes/performance.md``); an open batch takes a loop.

    Args:
        model: every input and its one output have 1 as their first size.
        batch: instances, or the name of the open size.

    Returns:
        A new model with the same inputs and output but for their first size.
    """
    is_nested = any(part.HasField("g") for node in model.graph.node for part in node.attribute)
    if isinstance(batch, str) or is_nested:
        outer = _loop(model.graph, batch)
    else:
        outer = _copies(model.graph, batch)
    wrapped = helper.make_model(
        outer,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        functions=model.functions,
        producer_name="dynprune",
    )
    onnx.checker.check_model(wrapped)
    return wrapped


def _copies(graph: onnx.GraphProto, batch: int) -> onnx.GraphProto:
    """Repeat the nodes for each of a known number of instances."""
    inputs, output = list(graph.input), graph.output[0]
    weights = {weight.name for weight in graph.initializer}
    own = {value.name for value in inputs}.union(*(node.output for node in graph.node)) - weights
    nodes, outputs = [], []
    for value in inputs:
        parts = [f"{value.name}/{instance}" for instance in range(batch)]
        nodes.append(helper.make_node("Split", [value.name, "instances/ones"], parts, axis=0))
    for instance in range(batch):
        names = {name: f"{name}/{instance}" for name in own if name}
        for node in graph.node:
            nodes.append(_renamed(node, names))
            nodes[-1].name = f"{node.name}/{instance}"
        outputs.append(names[output.name])
    nodes.append(helper.make_node("Concat", outputs, [output.name], axis=0))
    ones = helper.make_tensor("instances/ones", TensorProto.INT64, [batch], [1] * batch)
    return helper.make_graph(
        nodes,
        graph.name or "model",
        [_with_batch(value, batch) for value in inputs],
        [_with_batch(output, batch)],
        initializer=[*graph.initializer, ones],
    )


def _loop(graph: onnx.GraphProto, batch: int | str) -> onnx.GraphProto:
    """Put the nodes into a loop over the instances."""
    inputs, output = list(graph.input), graph.output[0]
    inner = {value.name: f"{value.name}/instance" for value in (*inputs, output)}
    nodes = [_renamed(node, inner) for node in graph.node]
    one_output = onnx.ValueInfoProto()
    one_output.CopyFrom(output)
    one_output.name = inner[output.name]
    split = [helper.make_node("Unsqueeze", ["iteration", "axis_0"], ["position"])]
    split += [
        helper.make_node("Gather", [value.name, "position"], [inner[value.name]], axis=0)
        for value in inputs
    ]
    split.append(helper.make_node("Identity", ["goes_on"], ["goes_on_still"]))
    body = helper.make_graph(
        [*split, *nodes],
        "one_instance",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("goes_on_still", TensorProto.BOOL, []), one_output],
        initializer=[*graph.initializer, helper.make_tensor("axis_0", TensorProto.INT64, [1], [0])],
        value_info=list(graph.value_info),
    )
    return helper.make_graph(
        [
            helper.make_node("Shape", [inputs[0].name], ["instances"], start=0, end=1),
            helper.make_node("Squeeze", ["instances"], ["count"]),
            helper.make_node("Loop", ["count", ""], ["stacked"], body=body),
            helper.make_node("Squeeze", ["stacked", "axis_1"], [output.name]),
        ],
        graph.name or "model",
        [_with_batch(value, batch) for value in inputs],
        [_with_batch(output, batch)],
        initializer=[helper.make_tensor("axis_1", TensorProto.INT64, [1], [1])],
    )


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    new = onnx.NodeProto()
    new.CopyFrom(node)
    for place, name in enumerate(node.input):
        new.input[place] = names.get(name, name)
    for place, name in enumerate(node.output):
        new.output[place] = names.get(name, name)
    return new


def _with_batch(value: onnx.ValueInfoProto, batch: int | str) -> onnx.ValueInfoProto:
    kind = value.type.tensor_type
    sizes: Sequence[int | str | None] = [
        size.dim_param or (size.dim_value if size.HasField("dim_value") else None)
        for size in kind.shape.dim
    ]
    return helper.make_tensor_value_info(value.name, kind.elem_type, [batch, *sizes[1:]])
