"""Open a file for an engine as a module from pictures to logits, with what it says of itself."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dynprune.errors import InputError, UsageError
from dynprune.example import Example
from dynprune.export.facts import KEY, FileFacts
from dynprune.export.verify import Check
from dynprune.models.source import LoadedModel, ModelSource

__all__ = ["EngineFile", "as_module", "is_engine_file", "open_engine_file"]

_SUFFIXES = {".onnx": "onnx", ".xml": "openvino"}
"""Suffix of a file -> the extra that installs its engine."""


class EngineFile(nn.Module):
    """Runs a file in its engine, on the CPU, as if it were a model.

    Args:
        run: the file.
        name: of the file, for messages.

    Shape:
        float32 ``(B, 3, H, W)`` in, logits ``(B, classes, h, w)`` out.
    """

    def __init__(self, run: Check, name: str) -> None:
        super().__init__()
        self.run = run
        self.name = name

    def forward(self, pictures: Tensor) -> Tensor:
        """Run the file.

        Raises:
            InputError: the engine does not take pictures of this size.
        """
        try:
            return self.run([pictures]).to(pictures.device)
        except Exception as error:  # engines have no exception of their own for a wrong shape
            shape = "x".join(map(str, pictures.shape))
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise InputError(
                f"{self.name} does not run on a picture of {shape} ({reason}). A file that was "
                "exported with --fixed-size takes one size alone: export it without, or resize the "
                "pictures by data.resize in a recipe"
            ) from error


def is_engine_file(name: str) -> bool:
    """Whether MODEL is a file for an engine, by its suffix."""
    return Path(name).suffix in _SUFFIXES and not Path(name).is_dir()


def open_engine_file(path: Path, *, threads: int = 0) -> tuple[LoadedModel, FileFacts]:
    """Open a file that `dynprune export` wrote.

    Args:
        path: ends in ``.onnx`` or ``.xml``.
        threads: of one inference; 0 leaves it to the engine.

    Returns:
        The file as a model, and its facts.

    Raises:
        InputError: it is missing, the engine cannot read it, or it does not say what it is.
        UsageError: the engine is not installed.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    engine = _SUFFIXES[path.suffix]
    try:
        text = _onnx_text(path) if engine == "onnx" else _openvino_text(path)
        facts = FileFacts.from_text(text, path)
        module = as_module(path, precision=facts.precision, threads=threads)
    except ImportError as error:
        raise UsageError(
            f"running {path.name} needs the package {error.name}: pip install 'dynprune[{engine}]'"
        ) from error
    loaded = LoadedModel(
        module=module,
        example=Example((torch.zeros(1, 3, 64, 64),)),
        source=ModelSource("factory"),
        classes=facts.classes,
        name=str(path),
        processor=facts.processor,
    )
    return loaded, facts


def as_module(path: Path, *, precision: str = "fp32", threads: int = 0) -> EngineFile:
    """Return what runs a file, whatever it says of itself.

    Args:
        path: ends in ``.onnx`` or ``.xml``.
        precision: that it was written in.
        threads: of one inference; 0 leaves it to the engine.
    """
    if _SUFFIXES[path.suffix] == "onnx":
        from dynprune.export.onnx import onnx_runner

        return EngineFile(onnx_runner(path, threads=threads), path.name).eval()
    from dynprune.export.openvino import openvino_runner

    run = openvino_runner(
        path, threads=threads, arithmetic="bf16" if precision == "bf16" else "f32"
    )
    return EngineFile(run, path.name).eval()


def _onnx_text(path: Path) -> str | None:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import (
        Fail,
        InvalidArgument,
        InvalidGraph,
        InvalidProtobuf,
    )

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"onnxruntime cannot read {path}: {reason}") from error
    found = session.get_modelmeta().custom_metadata_map.get(KEY)
    return None if found is None else str(found)


def _openvino_text(path: Path) -> str | None:
    import openvino

    try:
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or ["no reason"])[-1]
        raise InputError(
            f"OpenVINO cannot read {path} ({reason}); its weights must lie beside it, in "
            f"{path.with_suffix('.bin').name}"
        ) from error
    if not model.has_rt_info([KEY]):
        return None
    return str(model.get_rt_info([KEY]).astype(str))
