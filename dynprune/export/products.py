"""The products of an ONNX file, each under the name of the layer whose weights it multiplies by."""

import ast
from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import GraphProto, NodeProto

__all__ = ["depthwise_of", "gathered_of", "name_products", "products_of"]

PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose"}

_SCOPES = "pkg.torch.onnx.name_scopes"
_ROOT = "model."  # the attribute by which the traced program holds the model

_GATHERS = {"Gather", "GatherElements", "GatherND"}

_KEEPS = {
    "Cast",
    "CastLike",
    "DequantizeLinear",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Mul",
    "QuantizeLinear",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
"""What may be done to a layer's weights before they are multiplied by."""


def name_products(model: onnx.ModelProto) -> None:
    """Give every product with a layer's weights that layer's name, in place.

    Engines keep the names of nodes through their own optimisation, so that what became of a layer
    can be read from what they execute. Names end in ``@`` and a number where a layer multiplies
    more than once.

    Args:
        model: as the exporter wrote it: its nodes tell the modules that they come from.
    """
    seen: Counter[str] = Counter()
    for node in _weighted(model.graph):
        layer = _layer_of(node)
        if not layer:
            continue
        seen[layer] += 1
        node.name = layer if seen[layer] == 1 else f"{layer}@{seen[layer]}"


def products_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return name -> output of all products with weights, in the order that they run in.

    OpenVINO calls the product that makes the result by its output.
    """
    return {node.name: node.output[0] for node in _weighted(model.graph)}


def depthwise_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the convolutions that have a filter of their own for every channel."""
    groups = {
        node.name: attribute.i
        for node in _weighted(model.graph)
        for attribute in node.attribute
        if attribute.name == "group"
    }
    return tuple(name for name, count in groups.items() if count > 1)


def gathered_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the products whose weights are gathered for every input."""
    return tuple(
        node.name
        for graph in _graphs(model.graph)
        for node in graph.node
        if node.op_type in PRODUCTS and _is_gathered(node, graph)
    )


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _is_gathered(node: NodeProto, graph: GraphProto) -> bool:
    makers = {name: made for made in graph.node for name in made.output}
    for name in node.input[:2]:
        gathers = False
        while (made := makers.get(name)) is not None and made.op_type in _KEEPS:
            gathers = gathers or (made.op_type in _GATHERS and made.input[1] in makers)
            name = made.input[0]
        is_made = made is not None and made.op_type != "Constant"
        if gathers and not is_made and name not in {value.name for value in graph.input}:
            return True
    return False


def _weighted(graph: GraphProto, outer: frozenset[str] = frozenset()) -> Iterator[NodeProto]:
    """Yield the products one of whose factors is made of constants alone, but for gathering."""
    weights = outer | {weight.name for weight in graph.initializer}
    # A single row from the left sums up tokens: a gate pools so; it is no layer.
    rows = {weight.name for weight in graph.initializer if [*weight.dims][-2:-1] == [1]}
    makers = {name: node for node in graph.node for name in node.output}
    weights |= {name for name, node in makers.items() if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type in PRODUCTS and any(
            _is_weight(name, makers, weights)
            for name in node.input[:2]
            if name != node.input[0] or name not in rows
        ):
            yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _weighted(attribute.g, weights)


def _is_weight(name: str, makers: dict[str, NodeProto], weights: frozenset[str]) -> bool:
    while name not in weights:
        node = makers.get(name)
        if node is None or node.op_type not in _KEEPS:
            return False
        name = node.input[0]
    return True


def _layer_of(node: NodeProto) -> str:
    """Return the innermost module that a node was traced in; empty where it is not told."""
    for record in node.metadata_props:
        if record.key == _SCOPES:
            scopes = ast.literal_eval(record.value)
            modules = [scope for scope in scopes[:-1] if scope]
            return str(modules[-1]).removeprefix(_ROOT) if modules else ""
    return ""
