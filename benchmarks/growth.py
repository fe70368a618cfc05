"""How cost grows: time and memory of a call over the input's size, the batch and the model.

Dense (rewritten) and pruned forms of the same model run in turns, so that ratios within a line hold
on a noisy machine. Memory is what tensors take at the peak of one call, besides the weights: it is
counted at PyTorch's allocator and is the same in every run. What `apply` itself needs, in processor
seconds of one thread, over the model and over the calibration inputs, ends the page.

    python benchmarks/growth.py                     # all: docs/results/growth.json, .md and .png
    python benchmarks/growth.py side tokens         # some axes
    python benchmarks/growth.py side --only 256 512 # some points of them
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))

from dynprune.example import Example
from dynprune.files import write_file
from dynprune.measure.latency import interleaved
from dynprune.measure.macs import without_gates
from dynprune.models import LoadedModel, load_model
from dynprune.pipeline import apply_recipe
from dynprune.pipeline.arguments import model_arguments
from dynprune.recipe import Recipe, load_recipe

RESULTS = Path(__file__).parents[1] / "docs" / "results"
FORMS: Mapping[str, Sequence[str]] = {
    "fixed": ("apply.gate.choose=fixed",),
    "neurons": ("apply.gate.choose=neurons",),
}
"""Pruned forms, by what their recipe is given."""

BERT = {
    "model_type": "bert",
    "vocab_size": 1000,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 4096,
}
TEXT = ("model.architecture=BertModel", f"model.config={json.dumps(BERT)}")
HALF = "sparsity.final=0.5"


@dataclass(frozen=True)
class Axis:
    """One size that grows.

    Attributes:
        title: of its table.
        points: sizes, from small to large.
        subject: size -> recipe and what it is given.
    """

    title: str
    points: tuple[int, ...]
    subject: Callable[[int], tuple[str, Sequence[str]]]


def shape(*sizes: int) -> str:
    return f"model.input={list(sizes)}"


AXES = {
    "side": Axis(
        "SegFormer-B0, side of the image in pixels, batch 1",
        (256, 512, 1024, 2048),
        lambda side: ("segformer-b0", (shape(1, 3, side, side),)),
    ),
    "tokens": Axis(
        "A text encoder of MiniLM's shape, tokens, batch 1",
        (16, 64, 256, 1024, 4096),
        lambda count: ("any", (*TEXT, shape(1, count))),
    ),
    "batch": Axis(
        "SegFormer-B0, 256x256, batch",
        (1, 2, 4, 8, 16),
        lambda batch: ("segformer-b0", (shape(batch, 3, 256, 256),)),
    ),
    "model": Axis(
        "SegFormer-B0 to -B5, 512x512, batch 1",
        (0, 1, 2, 3, 4, 5),
        lambda size: (f"segformer-b{size}", (shape(1, 3, 512, 512),)),
    ),
}
CALIBRATION = (1, 4, 16, 64)
"""Inputs on which `apply` is timed."""


def built(name: str, settings: Sequence[str]) -> tuple[LoadedModel, Recipe]:
    """Build a recipe's model with random weights."""
    recipe = load_recipe(name, [HALF, *settings])
    torch.manual_seed(0)
    return load_model(None, weights="random", **model_arguments(recipe)), recipe


def forms_of(name: str, settings: Sequence[str]) -> tuple[dict[str, nn.Module], Example]:
    """Return the rewritten dense model and its pruned forms, and a call."""
    made: dict[str, nn.Module] = {}
    example = None
    for form, choice in FORMS.items():
        loaded, recipe = built(name, [*settings, *choice])
        made[form] = apply_recipe(loaded, recipe)
        example = loaded.example
    dense = without_gates(made["neurons"])
    assert example is not None
    return {"dense": dense, **made}, example


def peak_mb(model: nn.Module, example: Example) -> float:
    """Return the most that tensors made in one call take at once, in MB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        example.run(model)
    assert seen.profiler is not None
    standing = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            standing += event.nbytes()
            most = max(most, standing)
    return most / 1e6


def point(name: str, settings: Sequence[str], runs: int) -> dict[str, Any]:
    """Measure every form at one size."""
    models, example = forms_of(name, settings)
    with torch.inference_mode():
        calls = {form: partial(example.run, model) for form, model in models.items()}
        times = interleaved(calls, repeats=runs, warmup=1)
        memory = {form: peak_mb(model, example) for form, model in models.items()}
    return {"ms": {form: median(own) for form, own in times.items()}, "peak_mb": memory}


def planning(runs: int) -> dict[str, dict[str, float]]:
    """Return processor seconds of `apply`, over the model and over the calibration inputs."""
    found: dict[str, dict[str, float]] = {"model": {}, "calibration": {}}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        apply_seconds("segformer-b0", 0)  # what is imported on the way is no planning
        for size in AXES["model"].points:
            seconds = [apply_seconds(f"segformer-b{size}", 0) for _ in range(runs)]
            found["model"][str(size)] = min(seconds)
        for count in CALIBRATION:
            seconds = [apply_seconds("segformer-b0", count) for _ in range(runs)]
            found["calibration"][str(count)] = min(seconds)
    finally:
        torch.set_num_threads(threads)
    return found


def apply_seconds(name: str, count: int) -> float:
    """Apply a recipe at 256x256 once, calibrated on ``count`` random inputs; none where 0."""
    loaded, recipe = built(name, [shape(1, 3, 256, 256), "apply.calibration.refit=true"])
    inputs = [Example((torch.randn(1, 3, 256, 256),)) for _ in range(count)]
    start = time.process_time()
    apply_recipe(loaded, recipe, calibration=inputs or None)
    return time.process_time() - start


def grew(values: Sequence[float]) -> float:
    """Return by how much the last of some values is larger than the first."""
    return values[-1] / values[0]


def table(axis: Axis, points: Mapping[str, Any]) -> list[str]:
    """Return an axis as a table: a line for each size, and how much every form grew."""
    forms = ["dense", *FORMS]
    lines = [
        f"## {axis.title}",
        "",
        "| | " + " | ".join(f"{form}, ms" for form in forms) + " | "
        "dense over "
        + " | dense over ".join(FORMS)
        + " | "
        + " | ".join(f"{form}, MB" for form in forms)
        + " |",
        "|---" + "|--:" * (2 * len(forms) + len(FORMS)) + "|",
    ]
    for size, found in points.items():
        ms, memory = found["ms"], found["peak_mb"]
        cells = [size, *(f"{ms[form]:.1f}" for form in forms)]
        cells += [f"{ms['dense'] / ms[form]:.2f}" for form in FORMS]
        cells += [f"{memory[form]:.1f}" for form in forms]
        lines.append("| " + " | ".join(cells) + " |")
    if len(points) > 1:
        rows = list(points.values())
        growth = [
            grew([row[what][form] for row in rows]) for what in ("ms", "peak_mb") for form in forms
        ]
        cells = ["grew by", *(f"x{g:.1f}" for g in growth[: len(forms)]), *([""] * len(FORMS))]
        cells += [f"x{g:.1f}" for g in growth[len(forms) :]]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def page(known: Mapping[str, Any]) -> str:
    """Return docs/results/growth.md."""
    lines = [
        "# How cost grows",
        "",
        f"Made by `python benchmarks/growth.py` on {known['machine']}, {known['threads']} threads,",
        "in PyTorch eager. Random weights, half of every group's neurons pruned: what is executed",
        "depends on shapes alone. Times are medians of runs in turns: ratios within a line count.",
        "Memory is what tensors take at the peak of a call, besides the weights. *dense* has the",
        "lossless rewrites. *fixed* has one set of neurons for all inputs, as narrow plain layers;",
        "*neurons* chooses for every input.",
        "",
        "![Time and memory over each size](growth.png)",
        "",
    ]
    for name, axis in AXES.items():
        if name in known["axes"]:
            lines += table(axis, known["axes"][name])
    if "planning" in known:
        lines += [
            "## `apply` itself, at 256x256, with the refit",
            "",
            "| SegFormer | processor seconds, no calibration |",
            "|---|--:|",
            *(f"| B{size} | {s:.1f} |" for size, s in known["planning"]["model"].items()),
            "",
            "| calibration images, B0 | processor seconds |",
            "|---|--:|",
            *(f"| {count} | {s:.1f} |" for count, s in known["planning"]["calibration"].items()),
            "",
        ]
    return "\n".join(lines)


def plot(known: Mapping[str, Any], path: Path) -> None:
    """Draw time and memory over every axis, on logarithmic scales."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = {name: points for name, points in known["axes"].items() if name in AXES}
    figure = Figure(figsize=(3.2 * len(axes), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(axes), squeeze=False)
    for column, (name, points) in enumerate(axes.items()):
        for row, (what, unit) in enumerate((("ms", "milliseconds"), ("peak_mb", "MB at the peak"))):
            here = grid[row][column]
            for form in ("dense", *FORMS):
                sizes = [int(size) for size in points]
                here.plot(sizes, [p[what][form] for p in points.values()], "o-", label=form, ms=3)
            here.set_yscale("log")
            if name != "model":
                here.set_xscale("log", base=2)
            here.set_xlabel("SegFormer-B{0...5}" if name == "model" else name)
            here.set_ylabel(unit)
            here.spines[["top", "right"]].set_visible(False)
    grid[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("axes", nargs="*", help=", ".join([*AXES, "planning"]))
    parser.add_argument("--only", nargs="*", type=int, help="these points alone")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if unknown := set(options.axes) - {*AXES, "planning"}:
        parser.error(f"no axis is called {unknown.pop()}; there are: {', '.join(AXES)}, planning")
    torch.set_num_threads(options.threads)
    path = options.output / "growth.json"
    known = json.loads(path.read_text()) if path.exists() else {"axes": {}}
    known |= {"machine": platform.machine(), "threads": options.threads}
    for name in options.axes or [*AXES, "planning"]:
        if name == "planning":
            known["planning"] = planning(1 if options.runs < 3 else 2)
            continue
        points = known["axes"].setdefault(name, {})
        for size in options.only or AXES[name].points:
            points[str(size)] = point(*AXES[name].subject(size), options.runs)
            print(name, size, json.dumps(points[str(size)]), flush=True)
        known["axes"][name] = dict(sorted(points.items(), key=lambda item: int(item[0])))
    options.output.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(known, indent=1) + "\n")
    write_file(path.with_suffix(".md"), page(known))
    plot(known, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
