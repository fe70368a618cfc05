"""`dynprune eval`: how well a model labels a data set."""

from .bounds import check_bounds, parse_bounds
from .options import (
    DataDirectory,
    Device,
    FailIf,
    Json,
    ModelName,
    Overrides,
    Quiet,
    RecipeName,
    Split,
    Threads,
    Verbose,
)
from .subject import find_recipe, load_subject, prepare
from .terminal import Terminal, table


def run(
    model: ModelName,
    data: DataDirectory,
    split: Split = "val",
    recipe: RecipeName = None,
    overrides: Overrides = None,
    fail_if: FailIf = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a model on a data set: mIoU, pixel accuracy, and every class.

    Pictures go in at full size; logits are resized to the labels' size; one confusion matrix over
    the whole set; label 255 counts for nothing.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    bounds = parse_bounds(fail_if)
    followed = find_recipe(model, recipe, overrides)
    prepare(threads, followed)
    from dynprune.data import open_dataset
    from dynprune.pipeline.arguments import picture_arguments
    from dynprune.tasks.evaluate import evaluate

    from .subject import choose_device

    place = choose_device(device)
    dataset = open_dataset(data, split)
    loaded = load_subject(model, followed, device=place)
    with terminal.progress("evaluate") as step:
        found = evaluate(
            loaded.module, dataset, device=place, progress=step, **picture_arguments(followed)
        )
    record = found.to_json()
    terminal.result(
        record,
        table(
            "class",
            ">IoU",
            rows=[
                (name, "-" if iou is None else f"{iou:.4f}")
                for name, iou in found.per_class.items()
            ],
        ),
        f"mIoU {found.miou:.4f}  pixel accuracy {found.pixel_accuracy:.4f}  "
        f"images {found.images}  ({split} of {data})",
    )
    check_bounds(bounds, record)
