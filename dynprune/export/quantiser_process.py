"""The process that quantises: reads a request, calls nncf or onnxruntime, writes the file."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["main"]

MISSING = 3
"""Exit code where a package is not installed; its name is the last line on stderr."""


def main(directory: str) -> int:
    """Carry out the request that lies in a directory, see `dynprune.export.quantiser`."""
    place = Path(directory)
    request = json.loads((place / "request.json").read_text(encoding="utf-8"))
    work = _by_nncf if request["quantiser"] == "nncf" else _by_onnxruntime
    try:
        work(place, request)
    except ModuleNotFoundError as error:
        sys.stderr.write(f"\n{error.name}\n")
        return MISSING
    return 0


def _calls(place: Path, request: dict[str, Any]) -> Iterator[list[Any]]:
    for number in range(request["calls"]):
        with np.load(place / f"{number}.npz", allow_pickle=False) as arrays:
            yield [arrays[str(i)] for i in range(len(arrays.files))]


def _by_nncf(place: Path, request: dict[str, Any]) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(request["source"])
    ignored = _names_in(model, request["leave_out"])
    quantised = nncf.quantize(
        model,
        nncf.Dataset(list(_calls(place, request))),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=request["calls"],
        ignored_scope=nncf.IgnoredScope(names=ignored),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            disable_bias_correction=request["quick"]
        ),
    )
    openvino.save_model(quantised, request["target"], compress_to_fp16=False)


def _names_in(model: Any, products: dict[str, str]) -> list[str]:
    """Return what OpenVINO calls products: their names, with an end, or by what they make."""
    kinds = {"Convolution", "GroupConvolution", "MatMul"}
    found = {}
    for node in model.get_ops():
        if node.get_type_name() in kinds:
            found[node.get_friendly_name().removesuffix("/WithoutBiases")] = node
        for made in (name for output in node.outputs() for name in output.get_names()):
            before = node
            while before.get_type_name() not in kinds and before.get_input_size():
                if before.get_type_name() not in ("Add", "Result"):
                    break
                before = before.input_value(0).get_node()
            if before.get_type_name() in kinds:
                found.setdefault(made, before)
    missing = [n for n, made in products.items() if n not in found and made not in found]
    if missing:
        raise ValueError(f"OpenVINO's graph holds no product called {missing[0]}")
    return [
        found[name if name in found else made].get_friendly_name()
        for name, made in products.items()
    ]


def _by_onnxruntime(place: Path, request: dict[str, Any]) -> None:
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    from dynprune.export.products import products_of

    model = onnx.load(request["source"])
    names = [value.name for value in model.graph.input]
    waiting = _calls(place, request)

    class Calls(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            call = next(waiting, None)
            return None if call is None else dict(zip(names, call, strict=True))

    chosen = [name for name in products_of(model) if name not in request["leave_out"]]
    quantize_static(
        request["source"],
        request["target"],
        Calls(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        nodes_to_quantize=chosen,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
