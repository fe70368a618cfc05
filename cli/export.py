"""`dynprune export`: a file that an inference engine runs, still dynamic."""

from collections import Counter
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
    Split,
    Threads,
    Verbose,
    Weights,
    parse_size,
)
from .subject import check_data, find_recipe, load_subject, picture_rules, prepare
from .terminal import Terminal

PRECISIONS = {"onnx": ("fp32", "fp16", "int8"), "openvino": ("fp32", "fp16", "bf16", "int8")}


def run(
    model: ModelName,
    engine: Annotated[
        str, typer.Option("--format", metavar="onnx|openvino", help="The engine's format.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The file.")],
    precision: Annotated[
        str,
        typer.Option(
            "--precision", metavar="fp32|fp16|bf16|int8", help="Of weights, or of arithmetic."
        ),
    ] = "fp32",
    fixed_size: Annotated[
        bool,
        typer.Option("--fixed-size", help="Take the example's size alone, which is faster."),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="Calibrate int8 on some of its pictures."),
    ] = None,
    split: Split = "train",
    subset: Annotated[
        int | None,
        typer.Option(
            "--subset",
            metavar="N",
            min=1,
            help="Pictures that calibrate int8; default: as many as calibrate gates.",
        ),
    ] = None,
    accuracy_drop: Annotated[
        float | None,
        typer.Option(
            "--accuracy-drop",
            metavar="X",
            min=0.0,
            help="mIoU that int8 may cost, such as 0.005: measured through the engine on other "
            "pictures of --data; fragile layers stay in fp32 until it holds.",
        ),
    ] = None,
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
    given, else it is written as it is. With --precision int8 it is quantised after training, by
    nncf for OpenVINO and by onnxruntime for ONNX, on pictures of --data; dense MODELs and those
    with fixed groups alone, since engines quantise constant weights. What is said of every product
    is read from the graph that the engine executes.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    if engine not in PRECISIONS:
        raise typer.BadParameter(f"{engine!r} is not onnx or openvino")
    if precision not in PRECISIONS[engine]:
        raise typer.BadParameter(f"{precision!r} is not one of {', '.join(PRECISIONS[engine])}")
    _check_calibration(precision, data, subset, accuracy_drop)
    size = parse_size(input_size) if input_size else None
    if data is not None:
        check_data(data, split)
    followed = find_recipe(model, recipe, overrides)
    prepare(threads, followed)
    loaded = load_subject(model, followed, weights=weights, size=size, device="cpu")
    from dynprune import pipeline
    from dynprune.data import open_dataset
    from dynprune.gate import is_gated
    from dynprune.models import is_fixed
    from dynprune.pipeline.int8 import IMAGES, calibration_on, facts_of

    rules = picture_rules(loaded, followed, terminal)
    pictures = None if data is None else open_dataset(data, split, values=rules.values)
    if followed is not None and not (is_gated(loaded.module) or is_fixed(loaded.module)):
        calls = None
        if pictures is not None:
            calls = pipeline.calibration_calls(pictures, followed, rules.preprocessing)
        with terminal.working():
            pipeline.apply_recipe(loaded, followed, calibration=calls)
    options: dict[str, Any] = {}
    if pictures is not None:
        own = IMAGES if followed is None else followed.apply.calibration.images or IMAGES
        options["calibration"] = calibration_on(
            loaded,
            pictures,
            rules.preprocessing,
            images=subset or own,
            most_lost=accuracy_drop,
            threads=threads or 0,
        )
    with terminal.working():
        exported: Any = _writer(engine, precision)(
            loaded.module,
            loaded.example,
            Path(output),
            precision=precision,
            fixed_size=fixed_size,
            overwrite=overwrite,
            facts=facts_of(loaded, rules),
            **options,
        )
    for warning in exported.warnings():
        terminal.note(warning)
    record = exported.to_json()
    terminal.result(record, _line(engine, output, record))


def _check_calibration(
    precision: str, data: str | None, subset: int | None, accuracy_drop: float | None
) -> None:
    """Refuse options of calibration where nothing is calibrated, and int8 without pictures."""
    given = {"--data": data, "--subset": subset, "--accuracy-drop": accuracy_drop}
    if precision == "int8" and data is None:
        raise UsageError("--precision int8 is calibrated on pictures; add --data DIR")
    if precision != "int8" and (idle := [name for name, value in given.items() if value]):
        raise UsageError(f"{idle[0]} is for --precision int8, and this file is in {precision}")


def _line(engine: str, output: str, record: dict[str, Any]) -> str:
    """Say in a line or two what was written, how near it is and how it runs."""
    shapes = ", ".join("x".join(map(str, shape)) for shape in record["checked"])
    ran = Counter(p["precision"] for p in record["products"] if p["precision"])
    runs = ", ".join(f"{count} in {precision}" for precision, count in ran.most_common())
    line = (
        f"{output}: {engine} {record['precision']}, largest relative difference from PyTorch "
        f"{record['max_error']:.1e} (inputs of {shapes})"
    )
    if runs:
        line += f"\nproducts as the engine runs them: {runs}"
    if record["accuracy"]:
        line += "\nmIoU through the engine: {fp32:.4f} in fp32, {int8:.4f} in int8".format(
            **record["accuracy"]
        )
    return line


def _writer(engine: str, precision: str) -> Any:
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
        extra = "int8" if precision == "int8" else engine
        raise UsageError(
            f"writing {engine} needs the package {error.name}: pip install 'dynprune[{extra}]'"
        ) from error
    return export_openvino
