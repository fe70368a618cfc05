"""`dynprune report`: the proof of what was saved."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from dynprune.recipe import Recipe

from .bounds import check_bounds, parse_bounds
from .examples import epilog
from .options import (
    Device,
    FailIf,
    InputSize,
    Json,
    ModelName,
    Overrides,
    Quiet,
    RecipeName,
    Split,
    Threads,
    Verbose,
    Weights,
    parse_size,
)
from .rows import merged_names, pattern_of
from .subject import check_data, choose_device, find_recipe, load_subject, picture_rules, prepare
from .terminal import Terminal, table

if TYPE_CHECKING:
    from dynprune.data import Preprocessing, SegmentationData
    from dynprune.example import Example
    from dynprune.measure.counters import CounterRow
    from dynprune.measure.macs import LayerMacs, MacsReport

app = typer.Typer(no_args_is_help=True, help="Count, time and show what pruning saves.")


@app.command(epilog=epilog("report flops"))
def flops(
    model: ModelName,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    weights: Weights = "pretrained",
    input_size: InputSize = None,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Instances of one call.")
    ] = 1,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="Count what runs on its pictures."),
    ] = None,
    split: Split = "val",
    images: Annotated[
        int, typer.Option("--images", metavar="N", min=1, help="Pictures of --data to run.")
    ] = 16,
    depth: Annotated[
        int | None,
        typer.Option("--depth", metavar="N", min=0, help="Show N levels of the model's tree."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show the whole tree of modules.")] = False,
    sort: Annotated[
        bool, typer.Option("--sort", help="Show the costliest modules first, as a table.")
    ] = False,
    counters: Annotated[
        bool,
        typer.Option("--counters", help="Put fvcore's and torch's own counters beside ours."),
    ] = False,
    fail_if: FailIf = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Count multiply-adds (MACs) of the dense, the rewritten and the pruned model.

    One MAC is one multiply-add; papers on segmentation often print MACs under the name FLOPs.
    Counts include attention and the gates' own cost. A dense MODEL is gated by the recipe first.
    """
    terminal = Terminal(json=json, quiet=quiet, verbose=verbose)
    bounds = parse_bounds(fail_if)
    size = parse_size(input_size) if input_size else None
    followed = find_recipe(model, recipe, overrides)
    prepare(threads, followed)
    place = choose_device(device)
    if data is not None:
        check_data(data, split)
    loaded = load_subject(model, followed, weights=weights, size=size, batch=batch, device=place)
    from dynprune.gate import is_gated
    from dynprune.measure.macs import macs_report
    from dynprune.models import is_fixed
    from dynprune.pipeline import apply_recipe

    if not (is_gated(loaded.module) or is_fixed(loaded.module)):
        if followed is None:
            terminal.note("the model is dense and no --recipe says how to gate it")
        else:
            apply_recipe(loaded, _counting(followed))
    calls: Sequence[Example] = ()
    rules = None
    if data is not None:
        from dynprune.data import open_dataset

        rules = picture_rules(loaded, followed, terminal)
        pictures = open_dataset(data, split, values=rules.values)
        calls = _calls(pictures, rules.preprocessing, images, loaded.example, place)
    found = macs_report(loaded.module, loaded.example, calls)
    for operator in found.uncounted:
        terminal.note(f"no formula for {operator}: its multiply-adds are missing in every count")
    if found.masked:
        terminal.note(
            f"{len(found.masked)} groups choose for every token: many tokens at once run masked, "
            "so that what was executed is dense there; one token alone runs as counted"
        )
    record = {**found.to_json(), **({} if rules is None else {"preprocessing": rules.to_json()})}
    views: list[Any] = [_layers(found.layers, depth, sort=sort, every=every), "", _totals(found)]
    if counters:
        from dynprune.measure.counters import compare_counters

        rows = compare_counters(loaded.module, loaded.example)
        record["counters"] = [asdict(row) for row in rows]
        views += ["", _counters(rows)]
    terminal.result(record, *views)
    check_bounds(bounds, record)


def _counting(recipe: Recipe) -> Recipe:
    """The recipe without calibration, on which no count depends."""
    gate = recipe.apply.gate.model_copy(update={"start": "fresh"})
    return recipe.model_copy(update={"apply": recipe.apply.model_copy(update={"gate": gate})})


def _calls(
    data: "SegmentationData",
    preprocessing: "Preprocessing",
    count: int,
    example: "Example",
    device: str,
) -> "list[Example]":
    """Pictures of a data set, at the size of the example."""
    import torch
    from torch.nn.functional import interpolate

    from dynprune.example import Example

    batch, _, height, width = example.tensors[0].shape
    pictures = []
    for index in range(min(count, len(data))):
        picture = preprocessing(data.picture(index), device)
        pictures.append(interpolate(picture, (height, width), mode="bilinear", antialias=True))
    return [Example((torch.cat(list(part)),)) for part in _parts(pictures, batch)]


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Split into parts of equal size; what is left over falls away."""
    return [items[i : i + size] for i in range(0, len(items) - size + 1, size)]


def _giga(macs: float) -> str:
    return f"{macs / 1e9:,.3f}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _totals(found: "MacsReport") -> Table:
    """The forms of the model side by side."""
    ran = found.executed
    spread = "" if ran.least == ran.most else f"from {_giga(ran.least)} to {_giga(ran.most)}"
    return table(
        "",
        ">G MACs",
        ">of dense",
        ">M parameters",
        "",
        title=f"input {list(found.input)}",
        rows=[
            ("dense", _giga(found.dense), "100.0%", f"{found.dense_parameters / 1e6:.2f}", ""),
            ("rewritten", _giga(found.rewritten), _share(found.rewritten, found.dense), "", ""),
            (
                "pruned, analytic",
                _giga(found.analytic),
                _share(found.analytic, found.dense),
                f"{found.pruned_parameters / 1e6:.2f}",
                "",
            ),
            ("pruned, executed", _giga(ran.mean), _share(ran.mean, found.dense), "", spread),
        ],
    )


def _counters(rows: "Sequence[CounterRow]") -> Table:
    """Other counters beside ours, with the reason for each difference."""
    return table(
        "counter",
        ">G MACs",
        ">ours of the same",
        "why",
        title="this model, one call, as it ran",
        rows=[(row.counter, _giga(row.macs), _giga(row.comparable), row.reason) for row in rows],
    )


def _layers(
    layers: "Sequence[LayerMacs]", depth: int | None, *, sort: bool, every: bool
) -> Table | Tree:
    """Show where the multiply-adds are: block by block, unless another view is asked for."""
    if sort:
        return _by_cost(layers)
    if every:
        depth = max(layer.name.count(".") for layer in layers) + 1
    return _by_block(layers) if depth is None else _tree(layers, depth)


def _by_block(layers: "Sequence[LayerMacs]") -> Table:
    """Make a row for the blocks that are alike but for a number."""
    from dynprune.report.blocks import sum_blocks

    costs: dict[tuple[str, int, int], list[str]] = {}
    for block in sum_blocks(layers, {}):
        cost = (pattern_of(block.name), sum(block.dense), sum(block.pruned))
        costs.setdefault(cost, []).append(block.name)
    return table(
        "block",
        ">blocks",
        ">dense G MACs",
        ">pruned G MACs",
        ">of dense",
        rows=[
            (
                name,
                len(own),
                _giga(dense * len(own)),
                _giga(pruned * len(own)),
                _share(pruned, dense),
            )
            for (_, dense, pruned), blocks in costs.items()
            for name, own in merged_names(blocks)
        ],
    )


def _by_cost(layers: "Sequence[LayerMacs]") -> Table:
    costliest = sorted(layers, key=lambda layer: -max(layer.dense, layer.pruned))
    return table(
        "module",
        ">dense M MACs",
        ">pruned M MACs",
        rows=[
            (
                layer.name or "(the model itself)",
                f"{layer.dense / 1e6:,.2f}",
                f"{layer.pruned / 1e6:,.2f}",
            )
            for layer in costliest
        ],
    )


def _tree(layers: "Sequence[LayerMacs]", depth: int) -> Tree:
    """The modules as they nest, each with its own and its children's multiply-adds."""
    sums: dict[tuple[str, ...], list[int]] = {}
    for layer in layers:
        parts = tuple(layer.name.split(".")) if layer.name else ()
        for level in range(min(len(parts), depth) + 1):
            both = sums.setdefault(parts[:level], [0, 0])
            both[0] += layer.dense
            both[1] += layer.pruned
    root = Tree(_branch("model", sums.get((), [0, 0])))
    branches: dict[tuple[str, ...], Tree] = {(): root}
    for parts, both in sums.items():
        if parts:
            branches[parts] = branches[parts[:-1]].add(_branch(parts[-1], both))
    return root


def _branch(name: str, macs: Sequence[int]) -> Text:
    return Text(f"{name}  {_giga(macs[0])} -> {_giga(macs[1])} G MACs")
