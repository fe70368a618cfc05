"""`dynprune predict`: coloured label maps over pictures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Device,
    Json,
    ModelName,
    Output,
    Overrides,
    Overwrite,
    Quiet,
    RecipeName,
    Threads,
    Verbose,
)
from .subject import find_recipe, load_labeller, place_of, prepare
from .terminal import Terminal, table

_SHOWN = 3


def run(
    model: ModelName,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="JPEG or PNG files.")],
    output: Output,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    opacity: Annotated[
        float, typer.Option("--opacity", metavar="X", min=0.0, max=1.0, help="Of the colours.")
    ] = 0.55,
    device: Device = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Label pictures: writes NAME.png, colours over the picture, and NAME_labels.png for each."""
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    followed = find_recipe(model, recipe, overrides)
    from dynprune.files import check_output

    target = Path(output)
    check_output(target, overwrite=overwrite)
    prepare(threads, followed)
    place = place_of(model, device)
    loaded, rules = load_labeller(model, followed, terminal, device=place, threads=threads)
    from dynprune.tasks.predict import predict_files

    rows = []
    with _directory(target) as directory, terminal.progress("predict") as step:
        for made in predict_files(
            loaded.module,
            images,
            directory,
            rules.preprocessing,
            opacity=opacity,
            device=place,
        ):
            shares = {_name(loaded.classes, index): share for index, share in made.shares.items()}
            rows.append((made, shares))
            step(len(rows), len(images))
    record = {
        "output": str(target),
        "images": [
            {
                "image": str(made.image),
                "overlay": str(target / made.overlay.name),
                "labels": str(target / made.labels.name),
                "shares": shares,
            }
            for made, shares in rows
        ],
        "preprocessing": rules.to_json(),
    }
    shown = [(made.image, target / made.overlay.name, _largest(shares)) for made, shares in rows]
    terminal.result(record, table("picture", "overlay", "mostly", rows=shown))


@contextmanager
def _directory(target: Path) -> Iterator[Path]:
    """Yield where to write: a new directory comes whole or not at all, an old one stays."""
    from dynprune.files import written_directory

    if target.is_dir() and any(target.iterdir()):
        yield target
        return
    with written_directory(target) as beside:
        yield beside


def _name(classes: tuple[str, ...], index: int) -> str:
    return classes[index] if index < len(classes) else f"class {index}"


def _largest(shares: dict[str, float]) -> str:
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ordered[:_SHOWN])
