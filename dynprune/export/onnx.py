"""ONNX files that choose neurons for every input inside, checked against PyTorch."""

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import optimizer
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.export.atomic import atomic_file
from dynprune.export.facts import KEY, FileFacts
from dynprune.export.int8 import TOLERANCE as INT8_TOLERANCE
from dynprune.export.int8 import Calibration, Quantised, calibrated_for, quantised, refuse_gathered
from dynprune.export.passes.groups import sorted_product
from dynprune.export.passes.instances import over_instances
from dynprune.export.precision import in_onnxruntime, products_with, pruned_layers
from dynprune.export.products import name_products, products_of
from dynprune.export.program import Exportable, Target, exportable
from dynprune.export.record import Export
from dynprune.export.verify import Check, check_calls, largest_difference
from dynprune.host.quiet import without_logs, without_warnings

__all__ = ["OnnxPrecision", "export_onnx", "halved", "onnx_model", "onnx_runner", "save_onnx"]

OnnxPrecision = Literal["fp32", "fp16", "int8"]

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "int8": INT8_TOLERANCE}
"""Largest relative difference from PyTorch: rounding, and the choice between equal neurons."""

_OUTPUT = "logits"

_FOLDED = 1 << 24
"""Values of a constant that is worked out before it is written: weights, not maps of them."""


def export_onnx(
    model: nn.Module,
    example: Example,
    path: Path,
    *,
    precision: OnnxPrecision = "fp32",
    fixed_size: bool = False,
    overwrite: bool = False,
    calibration: Calibration | None = None,
    facts: FileFacts | None = None,
) -> Export:
    """Write a model as ONNX; the file is kept only if onnxruntime computes the same with it.

    Args:
        model: gated, rewritten or neither; left as it is.
        example: a call of it.
        path: of the file.
        precision: ``fp16`` stores weights in half precision, arithmetic stays in float32; ``int8``
            quantises weights and activations after training.
        fixed_size: take inputs of the example's size alone.
        overwrite: whether the file may be there already.
        calibration: for ``int8``.
        facts: that travel in the file, so that it can be evaluated without its model.

    Raises:
        OutputError: the file exists, cannot be written, or differs from the model.
        UsageError: the model cannot be traced, or cannot be quantised.
    """
    if precision == "int8":
        refuse_gathered(model, "ONNX Runtime")
        calibration = calibrated_for(calibration, example, fixed=fixed_size)
    made = Quantised((), None)
    with atomic_file(path, overwrite=overwrite) as place:
        proto, traced = onnx_model(model, example, target="onnxruntime", fixed_size=fixed_size)
        names = products_of(proto)
        if precision == "int8" and calibration is not None:
            made = _in_int8(proto, place, calibration, facts)
            calls = check_calls(example, traced.file_shapes, like=calibration.calls)
        else:
            save_onnx(halved(proto) if precision == "fp16" else proto, place, facts, precision)
            calls = check_calls(example, traced.file_shapes)
        error = largest_difference(
            model,
            onnx_runner(place),
            calls,
            tolerance=TOLERANCES[precision],
            what=f"the {precision} ONNX file",
        )
        ran = in_onnxruntime(place, names)
    return Export(
        path,
        "onnx",
        precision,
        dict(zip(traced.names, traced.file_shapes, strict=True)),
        tuple(tuple(call.tensors[0].shape) for call in calls),
        error,
        products_with(ran, names, pruned_layers(model)),
        made.left_out,
        made.accuracy,
    )


def save_onnx(
    proto: onnx.ModelProto, path: Path, facts: FileFacts | None, precision: str = "fp32"
) -> None:
    """Write a model with its facts."""
    if facts is not None:
        helper.set_model_props(proto, {KEY: replace(facts, precision=precision).to_text()})
    onnx.save(proto, path)


def _in_int8(
    proto: onnx.ModelProto, place: Path, calibration: Calibration, facts: FileFacts | None
) -> Quantised:
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        source, target = Path(scratch) / "model.onnx", Path(scratch) / "int8.onnx"
        onnx.save(proto, source)
        made = quantised(source, target, products_of(proto), calibration, "onnxruntime")
        save_onnx(onnx.load(target), place, facts, "int8")
    return made


def onnx_model(
    model: nn.Module,
    example: Example,
    *,
    target: Target,
    fixed_size: bool = False,
    as_published: bool = False,
) -> tuple[onnx.ModelProto, Exportable]:
    """Convert a model, its batch open whether it is gated or not, unless sizes are fixed.

    Args:
        model: left as it is.
        example: a call of it.
        target: the engine that the file is written to run fastest in.
        fixed_size: take inputs of the example's size alone.
        as_published: keep norms as the model has them, for comparison.
    """
    traced = exportable(
        model, example, target=target, fixed_size=fixed_size, as_published=as_published
    )
    # What it warns of is nothing that its users could change.
    with without_warnings(), without_logs("torch.onnx", least=logging.ERROR):
        program = torch.onnx.export(
            traced.program,
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=list(traced.names),
            output_names=[_OUTPUT],
            custom_translation_table={torch.ops.dynprune.sorted_product.default: sorted_product},
        )
        assert program is not None
        optimizer.fold_constants(program.model, input_size_limit=_FOLDED, output_size_limit=_FOLDED)
        optimizer.remove_unused_nodes(program.model)
    proto = program.model_proto
    _tidy(proto, traced)
    return (over_instances(proto, traced.batch) if traced.one_instance else proto), traced


def onnx_runner(path: Path, *, threads: int = 0) -> Check:
    """Load a file into onnxruntime.

    Args:
        path: of the file.
        threads: of one operator; 0 leaves it to the engine.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(tensors: Any) -> Tensor:
        feeds = {n: t.detach().cpu().numpy() for n, t in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run([_OUTPUT], feeds)[0])

    return run


def _tidy(model: onnx.ModelProto, traced: Exportable) -> None:
    """Name open sizes and products, and drop in which source each node came from, in place."""
    name_products(model)
    del model.metadata_props[:]
    graph = model.graph
    for record in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del record.metadata_props[:]
        record.doc_string = ""
    for value, shape in zip(graph.input, traced.shapes, strict=True):
        for size, name in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            if isinstance(name, str):
                size.dim_param = name


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with its float32 weights in half precision, each behind a cast.

    Engines fold the casts when they load the file; arithmetic stays in float32.
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    _halve(new.graph)
    return new


def _halve(graph: onnx.GraphProto) -> None:
    casts = []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < 2:
            continue
        half = numpy_helper.from_array(
            numpy_helper.to_array(weight).astype(np.float16), f"{weight.name}/half"
        )
        casts.append(helper.make_node("Cast", [half.name], [weight.name], to=TensorProto.FLOAT))
        weight.CopyFrom(half)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _halve(attribute.g)
