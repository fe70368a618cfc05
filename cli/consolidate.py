"""`dynprune consolidate`: what trained gates really choose, as experts and fixed layers."""

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    DataDirectory,
    Device,
    Json,
    ModelName,
    Output,
    Overwrite,
    Quiet,
    Split,
    Threads,
    Verbose,
)
from .subject import choose_device, find_recipe, prepare
from .terminal import Terminal
from .work import open_work


def run(
    model: ModelName,
    data: DataDirectory,
    output: Output,
    experts: Annotated[
        int,
        typer.Option("--experts", metavar="N", min=1, help="Of each hidden layer; 1 fixes all."),
    ] = 4,
    split: Split = "train",
    images: Annotated[
        int, typer.Option("--images", metavar="N", min=4, help="Samples of --data to run.")
    ] = 96,
    device: Device = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn a trained gated MODEL into one with experts and fixed layers, and say what it cost.

    The sets that its gates choose on --data fall into clusters, each of which is an expert of a
    hidden layer; other groups keep what is kept most often. Consumers are fitted to the gated
    model's. One sample in four is held back to tell the cost. The result can be distilled further.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    followed = find_recipe(model, None, None)
    from .output import MODEL_FILES, check_directory

    target = Path(output)
    check_directory(target, MODEL_FILES, overwrite=overwrite)
    prepare(threads, followed)
    place = choose_device(device)
    from dynprune.measure.calls import TaskCalls
    from dynprune.models.storage import save
    from dynprune.pipeline.consolidate import consolidate_model

    work = open_work(data, (split,), model, followed, terminal, device=place, settle=False)
    calls = list(TaskCalls(work.parts[0], images, device=place))
    found = consolidate_model(work.loaded, calls, experts=experts)
    save(work.loaded.module, target, overwrite=overwrite)
    terminal.result(
        {
            "output": str(target),
            "experts": found.experts,
            "fixed": found.fixed,
            "agreement": found.agreement,
            "error": found.error,
            **work.read,
        },
        f"{target}: {found.experts} groups with experts, {found.fixed} fixed; they keep "
        f"{found.agreement:.1%} of what the gates kept, and the output of samples that were held "
        f"back is off by {found.error:.2%} (squared difference over squared norm)",
    )
