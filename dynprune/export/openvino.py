"""OpenVINO files that choose neurons for every input inside, checked against PyTorch."""

import tempfile
from pathlib import Path
from typing import Any, Literal

import onnx
import openvino
import torch
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.export.kept import kept_file
from dynprune.export.onnx import Export, onnx_model
from dynprune.export.passes.bfloat16 import gathered_in_bfloat16
from dynprune.export.verify import Check, check_calls, largest_difference

__all__ = ["OpenvinoPrecision", "export_openvino", "openvino_runner"]

OpenvinoPrecision = Literal["fp32", "fp16", "bf16"]

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Largest relative difference from PyTorch: rounding, and the choice between equal neurons."""


def export_openvino(
    model: nn.Module,
    example: Example,
    path: Path,
    *,
    precision: OpenvinoPrecision = "fp32",
    fixed_size: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write a model as OpenVINO IR; it is kept only if OpenVINO computes the same with it.

    The weights go beside ``path`` into a file that ends in ``.bin``.

    Args:
        model: gated, rewritten or neither; left as it is.
        example: a call of it.
        path: of the file; ends in ``.xml``.
        precision: ``fp16`` stores weights in half precision; ``bf16`` stores those that gates
            gather from in bfloat16, and is checked in bfloat16 arithmetic, which the engine chooses
            where the processor has it.
        fixed_size: take inputs of the example's size alone, for which the engine plans better.
        overwrite: whether the file may be there already.

    Raises:
        OutputError: the file exists, cannot be written, or differs from the model.
        UsageError: the model cannot be traced, or the name does not end in ``.xml``.
    """
    if path.suffix != ".xml":
        raise UsageError(f"{path.name}: the name of an OpenVINO file must end in .xml")
    with kept_file(path, overwrite=overwrite) as place:
        proto, traced = onnx_model(model, example, target="openvino", fixed_size=fixed_size)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            source = Path(scratch) / "model.onnx"
            onnx.save(gathered_in_bfloat16(proto) if precision == "bf16" else proto, source)
            converted = openvino.convert_model(source)
            openvino.save_model(converted, place, compress_to_fp16=precision == "fp16")
        calls = check_calls(example, traced.file_shapes)
        error = largest_difference(
            model,
            openvino_runner(place, arithmetic="bf16" if precision == "bf16" else "f32"),
            calls,
            tolerance=TOLERANCES[precision],
            what=f"the {precision} OpenVINO file",
        )
    return Export(
        path,
        "openvino",
        precision,
        dict(zip(traced.names, traced.file_shapes, strict=True)),
        tuple(tuple(call.tensors[0].shape) for call in calls),
        error,
    )


def openvino_runner(
    path: Path, *, threads: int = 0, arithmetic: Literal["f32", "bf16"] = "f32"
) -> Check:
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
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    request = compiled.create_infer_request()

    def run(tensors: Any) -> Tensor:
        request.infer([tensor.detach().cpu().numpy() for tensor in tensors])
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    return run
