"""OpenVINO files that choose neurons for every input inside, checked against PyTorch."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx
import openvino
import torch
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.export.atomic import atomic_file
from dynprune.export.facts import KEY, FileFacts
from dynprune.export.int8 import TOLERANCE as INT8_TOLERANCE
from dynprune.export.int8 import Calibration, Quantised, calibrated_for, quantised, refuse_gathered
from dynprune.export.onnx import onnx_model
from dynprune.export.passes.bfloat16 import gathered_in_bfloat16
from dynprune.export.precision import in_openvino, products_with, pruned_layers
from dynprune.export.products import depthwise_of, products_of
from dynprune.export.record import Export
from dynprune.export.verify import Check, check_calls, largest_difference

__all__ = [
    "Arithmetic",
    "OpenvinoPrecision",
    "compiled_model",
    "export_openvino",
    "openvino_runner",
]

Arithmetic = Literal["f32", "bf16"]

OpenvinoPrecision = Literal["fp32", "fp16", "bf16", "int8"]

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": INT8_TOLERANCE}
"""Largest relative difference from PyTorch: rounding, and the choice between equal neurons."""


def export_openvino(
    model: nn.Module,
    example: Example,
    path: Path,
    *,
    precision: OpenvinoPrecision = "fp32",
    fixed_size: bool = False,
    overwrite: bool = False,
    calibration: Calibration | None = None,
    facts: FileFacts | None = None,
) -> Export:
    """Write a model as OpenVINO IR; it is kept only if OpenVINO computes the same with it.

    The weights go beside ``path`` into a file that ends in ``.bin``.

    Args:
        model: gated, rewritten or neither; left as it is.
        example: a call of it.
        path: of the file; ends in ``.xml``.
        precision: ``fp16`` stores weights in half precision; ``bf16`` stores those that gates
            gather from in bfloat16, and is checked in bfloat16 arithmetic, which the engine chooses
            where the processor has it; ``int8`` quantises weights and activations after training.
        fixed_size: take inputs of the example's size alone, for which the engine plans better.
        overwrite: whether the file may be there already.
        calibration: for ``int8``.
        facts: that travel in the file, so that it can be evaluated without its model.

    Raises:
        OutputError: the file exists, cannot be written, or differs from the model.
        UsageError: the model cannot be traced or quantised, or the name does not end in ``.xml``.
    """
    if path.suffix != ".xml":
        raise UsageError(f"{path.name}: the name of an OpenVINO file must end in .xml")
    if precision == "int8":
        refuse_gathered(model, "OpenVINO")
        calibration = calibrated_for(calibration, example, fixed=fixed_size)
    with atomic_file(path, overwrite=overwrite) as place:
        proto, traced = onnx_model(model, example, target="openvino", fixed_size=fixed_size)
        names = products_of(proto)
        made = _written(proto, place, precision, calibration, facts)
        like = calibration.calls if precision == "int8" and calibration is not None else ()
        calls = check_calls(example, traced.file_shapes, like=like)
        arithmetic: Arithmetic = "bf16" if precision == "bf16" else "f32"
        compiled = compiled_model(place, arithmetic=arithmetic)
        error = largest_difference(
            model,
            _runner_of(compiled),
            calls,
            tolerance=TOLERANCES[precision],
            what=f"the {precision} OpenVINO file",
        )
        ran = in_openvino(compiled, names)
    return Export(
        path,
        "openvino",
        precision,
        dict(zip(traced.names, traced.file_shapes, strict=True)),
        tuple(tuple(call.tensors[0].shape) for call in calls),
        error,
        products_with(ran, names, pruned_layers(model)),
        made.left_out,
        made.accuracy,
    )


def _written(
    proto: onnx.ModelProto,
    place: Path,
    precision: OpenvinoPrecision,
    calibration: Calibration | None,
    facts: FileFacts | None,
) -> Quantised:
    """Convert a model to IR, by way of an ONNX file."""
    made = Quantised((), None)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        source = Path(scratch) / "model.onnx"
        onnx.save(gathered_in_bfloat16(proto) if precision == "bf16" else proto, source)
        model = openvino.convert_model(source)
        if precision == "int8" and calibration is not None:
            # Quantised depthwise convolutions come out wrong and would run in float32 anyway: see
            # docs/decisions/0095-depthwise-convolutions-stay-in-float32.md.
            plain, target = source.with_suffix(".xml"), Path(scratch) / "int8.xml"
            openvino.save_model(model, plain, compress_to_fp16=False)
            made = quantised(
                plain, target, products_of(proto), calibration, "nncf", never=depthwise_of(proto)
            )
            model = openvino.Core().read_model(target)
        if facts is not None:
            model.set_rt_info(replace(facts, precision=precision).to_text(), [KEY])
        openvino.save_model(model, place, compress_to_fp16=precision == "fp16")
        del model  # it maps the file of weights in the scratch directory
    return made


def compiled_model(path: Path, *, threads: int = 0, arithmetic: Arithmetic = "f32") -> Any:
    """Compile a file for the CPU.

    Args:
        path: of the file.
        threads: of one inference; 0 leaves it to the engine.
        arithmetic: precision that products are computed in.
    """
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": arithmetic,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    return openvino.Core().compile_model(path, "CPU", settings)


def openvino_runner(path: Path, *, threads: int = 0, arithmetic: Arithmetic = "f32") -> Check:
    """Compile a file for the CPU and return what runs it; see `compiled_model`."""
    return _runner_of(compiled_model(path, threads=threads, arithmetic=arithmetic))


def _runner_of(compiled: Any) -> Check:
    request = compiled.create_infer_request()

    def run(tensors: Any) -> Tensor:
        request.infer([tensor.detach().cpu().numpy() for tensor in tensors])
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    return run
