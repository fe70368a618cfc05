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
from .subject import (
    check_data,
    find_recipe,
    load_labeller,
    place_of,
    prepare,
    tell_classes,
)
from .terminal import Terminal, table

_SHOWN = 5  # names of a note


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

    Pictures go in as the recipe says, else as the model's own preprocessor_config.json says, else
    at full size; logits are resized to the labels' size; one confusion matrix over the whole set;
    label 255, and what data.ignore_index says, counts for nothing.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    bounds = parse_bounds(fail_if)
    followed = find_recipe(model, recipe, overrides)
    prepare(threads, followed)
    from dynprune.data import open_dataset
    from dynprune.tasks.evaluate import evaluate

    place = place_of(model, device)
    check_data(data, split)
    loaded, rules = load_labeller(model, followed, terminal, device=place, threads=threads)
    dataset = open_dataset(data, split, values=rules.values)
    if not dataset.numbered:
        tell_classes(loaded, dataset.classes, terminal)
    with terminal.progress("evaluate") as step:
        found = evaluate(loaded.module, dataset, rules.preprocessing, device=place, progress=step)
    if found.absent:
        names = ", ".join(found.absent[:_SHOWN]) + (", ..." if len(found.absent) > _SHOWN else "")
        terminal.note(
            f"{len(found.absent)} of {len(found.per_class)} classes are the label of no pixel, so "
            f"the mean leaves them out: {names}; {found.void:.1%} of the pixels count for nothing "
            f"({rules.values.describe()})"
        )
    record = {**found.to_json(), "preprocessing": rules.to_json()}
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
