"""At which precision an engine runs each product, read from the graph that it executes."""

import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dynprune.gate import gates
from dynprune.gate.attachment import attached
from dynprune.gate.plan import gated
from dynprune.models.provenance import records_of
from dynprune.rewrite.cuts import FIX_NEURONS

__all__ = [
    "ASKED",
    "Product",
    "fallen",
    "in_onnxruntime",
    "in_openvino",
    "products_with",
    "pruned_layers",
]

ASKED = {"fp32": "fp32", "fp16": "fp32", "bf16": "bf16", "int8": "int8"}
"""Precision of a file -> of its products: half-precision weights are widened when it is loaded."""

_OF_OPENVINO = {
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "i8": "int8",
    "u8": "int8",
}

_OF_ONNXRUNTIME = {
    "QLinearMatMul",
    "QLinearConv",
    "QGemm",
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearConvTranspose",
}


@dataclass(frozen=True)
class Product:
    """A product with weights, as the engine ran it.

    Attributes:
        layer: whose weights they are.
        precision: that the engine computed it in, ``fp32``, ``fp16``, ``bf16`` or ``int8``; None
            where the engine does not tell (inside loops).
        pruned: whether the layer is gated, or was narrowed for good.
    """

    layer: str
    precision: str | None
    pruned: bool

    def to_json(self) -> dict[str, Any]:
        """Return the product as plain values."""
        return {"layer": self.layer, "precision": self.precision, "pruned": self.pruned}


def pruned_layers(model: nn.Module) -> frozenset[str]:
    """Return the layers that lose neurons: by gates, or because groups were fixed."""
    layers = set()
    if gates(model):
        for plan in gated(attached(model).plans):
            group = plan.group
            sides = (*group.producers, *group.consumers, *group.carriers)
            layers |= {channels.module for channels in sides}
    for record in records_of(model):
        if record.name == FIX_NEURONS and record.reason is None:
            layers |= {cut["module"] for cut in record.details["layers"]}
    return frozenset(layers)


def products_with(
    precisions: Mapping[str, str], names: Iterable[str], pruned: frozenset[str]
) -> tuple[Product, ...]:
    """Return a record of every product.

    Args:
        precisions: name of a product -> what the engine told of it.
        names: of all products of the file, see `products_of`.
        pruned: see `pruned_layers`.
    """
    return tuple(
        Product(name, precisions.get(name), name.partition("@")[0] in pruned) for name in names
    )


def fallen(products: Iterable[Product], precision: str) -> tuple[Product, ...]:
    """Return the products that the engine ran at another precision than a file's stands for."""
    asked = ASKED[precision]
    return tuple(p for p in products if p.precision is not None and p.precision != asked)


def in_openvino(compiled: Any, products: Mapping[str, str]) -> dict[str, str]:
    """Return name -> precision of the products of a compiled model.

    Args:
        compiled: ``openvino.CompiledModel``.
        products: of its file, see `products_of`.
    """
    wanted = {made: name for name, made in products.items()} | {name: name for name in products}
    found: dict[str, str] = {}
    model = compiled.get_runtime_model()  # held here: its nodes do not keep it alive
    for node in model.get_ordered_ops():
        told = node.get_rt_info()
        kind = _text(told["layerType"])
        if kind not in ("FullyConnected", "MatMul", "Convolution", "Deconvolution"):
            continue
        precision = _text(told["runtimePrecision"])
        for part in _text(told["originalLayersNames"]).split(","):
            name = part.strip().partition("/")[0]
            if name in wanted:
                found[wanted[name]] = _OF_OPENVINO.get(precision, precision)
    return found


def in_onnxruntime(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name -> precision of the products of a file as onnxruntime optimised it.

    Args:
        path: of the file.
        names: of its products.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Precisions are settled here; what comes after it chooses layouts, and renames convolutions.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    wanted = set(names)
    with tempfile.TemporaryDirectory() as scratch:
        options.optimized_model_filepath = str(Path(scratch) / "optimised.onnx")
        onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    found: dict[str, str] = {}
    for node in _nodes(graph):
        # Fusion calls convolutions NAME_token_NUMBER or fused NAME.
        name = re.sub(r"_token_\d+$", "", node.name.partition("/")[0]).removeprefix("fused ")
        if name in wanted:
            found[name] = "int8" if node.op_type in _OF_ONNXRUNTIME else "fp32"
    return found


def _nodes(graph: Any) -> Iterable[Any]:
    for node in graph.node:
        if "Mat" in node.op_type or "Gemm" in node.op_type or "Conv" in node.op_type:
            yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _text(value: Any) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)
