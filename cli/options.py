"""The flags that commands share: one annotated type each, so that they read alike everywhere."""

import re
from typing import Annotated

import typer

__all__ = [
    "DataDirectory",
    "Device",
    "DryRun",
    "FailIf",
    "InputSize",
    "Json",
    "ModelName",
    "OptionalModelName",
    "Output",
    "Overrides",
    "Overwrite",
    "Quiet",
    "RecipeName",
    "Seed",
    "Split",
    "Threads",
    "Verbose",
    "Weights",
    "parse_size",
]

_MODEL_HELP = (
    "A directory that dynprune wrote, a transformers directory or hub name, module:factory, "
    "or a recipe's name for its default."
)


def parse_size(text: str) -> tuple[int, int]:
    """Read ``HxW`` in pixels.

    Raises:
        typer.BadParameter: the text is something else.
    """
    matched = re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", text)
    if matched is None:
        raise typer.BadParameter(f"{text!r} is not HEIGHTxWIDTH in pixels, such as 512x512")
    return int(matched[1]), int(matched[2])


def _check_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?|xpu(:\d+)?", text):
        raise typer.BadParameter(f"{text!r} is not auto, cpu, cuda, cuda:N, mps or xpu")
    return text


def _check_weights(text: str) -> str:
    if text not in ("pretrained", "random"):
        raise typer.BadParameter(f"{text!r} is not pretrained or random")
    return text


ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL_HELP)]
OptionalModelName = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help=_MODEL_HELP, show_default=False)
]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME|FILE", help="A built-in recipe's name, or a YAML file."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a recipe's value; repeatable."),
]
Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="pretrained|random",
        callback=_check_weights,
        help="random builds the recipe's architecture without weights, to count and to time.",
    ),
]
Output = Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Where results go.")]
DataDirectory = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="A folder, ADE20K or Cityscapes data set; a folder a class; pictures; text; "
        "module:function.",
    ),
]
Split = Annotated[
    str, typer.Option("--split", metavar="NAME", help="The part of the data set to read.")
]
InputSize = Annotated[
    str | None,
    typer.Option("--input-size", metavar="HxW", help="Pixels of one input; default: the recipe's."),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        callback=_check_device,
        help="auto, cpu, cuda, cuda:N, mps or xpu.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", metavar="N", min=1, help="CPU threads; default: the recipe's, or PyTorch's."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", min=0, help="Seed; default: the recipe's runtime.seed."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and say what would happen, no more.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Write into an output that is not empty.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Write one JSON document to stdout and nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show what is done, and tracebacks of bugs.")
]
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="KEY<NUMBER",
        help="Exit 5 if this holds of the JSON result, such as 'miou<0.5'; repeatable.",
    ),
]
