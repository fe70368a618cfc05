"""`dynprune export`: a file that an inference engine runs, still dynamic."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dynprune.errors import UsageError

from .options import (
    InputSize,
    Json,
    ModelName,
    Overrides,
    Overwrite,
    Quiet,
    RecipeName,
    Threads,
    Verbose,
    Weights,
    parse_size,
)
from .subject import find_recipe, load_subject, prepare
from .terminal import Terminal

PRECISIONS = {"onnx": ("fp32", "fp16"), "openvino": ("fp32", "fp16", "bf16")}


def run(
    model: ModelName,
    engine: Annotated[
        str, typer.Option("--format", metavar="onnx|openvino", help="The engine's format.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The file.")],
    precision: Annotated[
        str,
        typer.Option("--precision", metavar="fp32|fp16|bf16", help="Of weights, or of arithmetic."),
    ] = "fp32",
    fixed_size: Annotated[
        bool,
        typer.Option("--fixed-size", help="Take the example's size alone, which is faster."),
    ] = False,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    weights: Weights = "pretrained",
    input_size: InputSize = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a model as ONNX or OpenVINO; it is kept only if the engine computes the same.

    A gated MODEL stays dynamic in the file: every input picks its own neurons. Batch and picture
    size stay open, unless --fixed-size is given. A dense MODEL is gated first where --recipe is
    given, else it is written as it is.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    if engine not in PRECISIONS:
        raise typer.BadParameter(f"{engine!r} is not onnx or openvino")
    if precision not in PRECISIONS[engine]:
        raise typer.BadParameter(f"{precision!r} is not one of {', '.join(PRECISIONS[engine])}")
    size = parse_size(input_size) if input_size else None
    followed = find_recipe(model, recipe, overrides)
    prepare(threads, followed)
    loaded = load_subject(model, followed, weights=weights, size=size, device="cpu")
    from dynprune.gate import is_gated
    from dynprune.models import is_fixed
    from dynprune.pipeline import apply_recipe

    if followed is not None and not (is_gated(loaded.module) or is_fixed(loaded.module)):
        apply_recipe(loaded, followed)
    exported: Any = _writer(engine)(
        loaded.module,
        loaded.example,
        Path(output),
        precision=precision,
        fixed_size=fixed_size,
        overwrite=overwrite,
    )
    record = exported.to_json()
    shapes = ", ".join("x".join(map(str, shape)) for shape in record["checked"])
    terminal.result(
        record,
        f"{output}: {engine} {precision}, largest relative difference from PyTorch "
        f"{record['max_error']:.1e} (inputs of {shapes})",
    )


def _writer(engine: str) -> Any:
    """Return the function that writes a format.

    Raises:
        UsageError: the engine is not installed.
    """
    try:
        if engine == "onnx":
            from dynprune.export.onnx import export_onnx

            return export_onnx
        from dynprune.export.openvino import export_openvino
    except ImportError as error:
        raise UsageError(
            f"writing {engine} needs the package {error.name}: pip install 'dynprune[{engine}]'"
        ) from error
    return export_openvino
