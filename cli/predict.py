"""`dynprune predict`: what a model finds in pictures, text or calls, written into a directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynprune.recipe import Recipe

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
from .subject import find_recipe, load_engine_file, picture_rules, place_of, prepare
from .terminal import Terminal, table
from .work import load_for, reading_for

if TYPE_CHECKING:
    from dynprune.models import LoadedModel
    from dynprune.tasks.task import Kind

_SHOWN = 3


def run(
    model: ModelName,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="JPEG or PNG files; text files; module:function."),
    ],
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
    """Run a model on inputs of your own, by what its task is.

    Label maps: NAME.png, colours over the picture, and NAME_labels.png for each. Classes:
    classes.json with the first five of each picture. Features: NAME.safetensors, and NAME.png in
    colours. Text files: embeddings of their lines and each line's nearest others. module:function:
    the outputs of every call.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    followed = find_recipe(model, recipe, overrides)
    from dynprune.files import check_output

    target = Path(output)
    check_output(target, overwrite=overwrite)
    prepare(threads, followed)
    place = place_of(model, device)
    from dynprune.export.engine_file import is_engine_file

    if is_engine_file(model):
        loaded, rules = load_engine_file(model, followed, terminal, device=place, threads=threads)
    else:
        loaded = load_for(images, model, followed, device=place)
        from dynprune.pipeline.tasks import predicting_kind

        kind = predicting_kind(followed, images, loaded)
        if kind.predict is not None:
            _predict_by(kind, loaded, followed, images, target, terminal)
            return
        rules = picture_rules(loaded, followed, terminal)
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


def _predict_by(
    kind: "Kind",
    loaded: "LoadedModel",
    recipe: Recipe | None,
    inputs: list[str],
    target: Path,
    terminal: Terminal,
) -> None:
    """Predict by a task that writes its own files."""
    assert kind.predict is not None
    rules, reading = reading_for(kind, loaded, recipe, terminal)
    device = str(next(loaded.module.parameters()).device)
    rows = []
    with _directory(target) as directory, terminal.progress("predict") as step:
        for made in kind.predict(loaded.module, inputs, directory, reading, device):
            files = {what: str(target / path.name) for what, path in made.files.items()}
            rows.append((made.input, files, made.found, made.words))
            step(len(rows), max(len(rows), len(inputs)))
    record = {
        "output": str(target),
        "task": kind.name,
        "inputs": [{"input": name, **files, **found} for name, files, found, _ in rows],
        **({} if rules is None else {"preprocessing": rules.to_json()}),
    }
    shown = [(name, ", ".join(files.values()), words) for name, files, _, words in rows]
    terminal.result(record, table("input", "written", "found", rows=shown))


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
