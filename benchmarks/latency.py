"""Time the published settings in every engine, and say what they need of memory.

Random weights do: what is executed depends on shapes alone. Dense, rewritten and pruned form of a
model run in turns, in all engines of a row, for the size of the input alone. Memory is the peak of
a process of its own that loads the form and runs it in PyTorch.

    python benchmarks/latency.py                    # all rows: latency.json and .md in docs/results
    python benchmarks/latency.py b2-50 vit-s-50     # some
    python benchmarks/latency.py --check b2-50      # exit 1 where a ratio fell by more than 15 %
    python benchmarks/latency.py --cores together   # runs count while the cores share a cache
"""

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cores import share_a_cache
from dynprune.example import Example
from dynprune.export.engines import ENGINES, latency_report
from dynprune.export.program import compact
from dynprune.files import write_file
from dynprune.measure.macs import without_gates
from dynprune.models import load_model
from dynprune.pipeline import apply_recipe
from dynprune.pipeline.arguments import model_arguments
from dynprune.recipe import load_recipe
from dynprune.rewrite import undo

RESULTS = Path(__file__).parents[1] / "docs" / "results"
TOLERANCE = 0.15
FORMS = ("dense", "rewritten", "pruned")

VIT_S = {
    "model_type": "vit",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 224,
    "patch_size": 16,
    "num_labels": 1000,
}
VIT = ("model.architecture=ViTForImageClassification", f"model.config={json.dumps(VIT_S)}")


@dataclass(frozen=True)
class Row:
    """One setting.

    Attributes:
        recipe: built-in.
        ratio: prune ratio.
        input: shape of the call.
        engines: that it runs in.
        overrides: of the recipe.
    """

    recipe: str
    ratio: float
    input: tuple[int, ...]
    engines: Sequence[str] = ("torch", "openvino")
    overrides: tuple[str, ...] = ()


PICTURE = (1, 3, 512, 512)
FIXED = ("apply.gate.choose=fixed",)
ROWS = {
    "b2-50": Row("segformer-b2", 0.5, PICTURE, ENGINES),
    "b2-30": Row("segformer-b2", 0.3, PICTURE, ENGINES),
    "b0-50": Row("segformer-b0", 0.5, PICTURE, ENGINES),
    "b0-30": Row("segformer-b0", 0.3, PICTURE, ENGINES),
    "b5-50": Row("segformer-b5", 0.5, PICTURE),
    "b0-cityscapes-30": Row("segformer-b0-cityscapes", 0.3, (1, 3, 1024, 2048)),
    "b0-50-batch-4": Row("segformer-b0", 0.5, (4, *PICTURE[1:])),
    "b0-50-batch-8": Row("segformer-b0", 0.5, (8, *PICTURE[1:])),
    "vit-s-50": Row("any", 0.5, (1, 3, 224, 224), overrides=VIT),
    "minilm-50": Row("minilm", 0.5, (1, 128)),
    "b2-50-fixed": Row("segformer-b2", 0.5, PICTURE, ENGINES, FIXED),
    "b0-50-fixed": Row("segformer-b0", 0.5, PICTURE, ENGINES, FIXED),
    "vit-s-50-fixed": Row("any", 0.5, (1, 3, 224, 224), ENGINES, (*VIT, *FIXED)),
    "minilm-50-fixed": Row("minilm", 0.5, (1, 128), overrides=FIXED),
}


def subject(row: Row) -> tuple[nn.Module, Example]:
    """Build and gate a row's model."""
    shape = f"model.input={list(row.input)}"
    recipe = load_recipe(row.recipe, [f"sparsity.final={row.ratio}", shape, *row.overrides])
    loaded = load_model(None, weights="random", **model_arguments(recipe))
    return apply_recipe(loaded, recipe), loaded.example


def peak_mb(row: Row, form: str) -> float:
    """Load one form, run it three times, and give the process's peak meanwhile, in MB."""
    model, example = subject(row)
    if form != "pruned":
        model = without_gates(model)
    if form == "dense":
        undo(model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    with compact(model), torch.inference_mode():
        for _ in range(3):
            example.run(model)
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


CORES: dict[str, Callable[[], bool] | None] = {
    "any": None,
    "together": share_a_cache,
    "apart": lambda: not share_a_cache(),
}
"""What the cores must do for a run to count; a virtual machine's may move."""


def measured(name: str, runs: int, cores: str) -> dict[str, Any]:
    """Measure one row."""
    row = ROWS[name]
    memory = {}
    for form in FORMS:
        command = [sys.executable, __file__, name, "--memory", form]
        memory[form] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    made = subject(row)
    report = latency_report(*made, row.engines, runs=runs, counts=CORES[cores])
    macs = next(iter(report.engines.values())).macs
    return {
        "row": row_name(name, cores),
        "recipe": row.recipe,
        "prune_ratio": row.ratio,
        "macs": dict(macs),
        "peak_mb": memory,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "cores": cores,
        **report.to_json(),
    }


def measured_alone(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a row in a process of its own: allocators adapt to what ran before."""
    command = [sys.executable, __file__, name, "--row", "--cores", options.cores]
    command += ["--runs", str(options.runs), "--threads", str(options.threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


def row_name(name: str, cores: str) -> str:
    """Return the name that a row is stored by: in its usual state, or with its cores apart."""
    return f"{name}-apart" if cores == "apart" else name


def in_order(known: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the stored rows in the order of their names."""
    names = [row_name(name, cores) for name in ROWS for cores in ("together", "apart")]
    return [known[name] for name in names if name in known]


def scatter(row: dict[str, Any]) -> float:
    """Return the largest distance of a form's quartiles over its median."""
    return max(
        (high - low) / found[f"{form}_ms"]
        for found in row["engines"].values()
        for form, (low, high) in found["quartiles_ms"].items()
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, a line for each engine."""
    lines = [
        "| row | input | engine | dense ms | rewritten ms | pruned ms | speedup | efficiency "
        "| G MACs dense / rewritten / pruned | peak MB in PyTorch, dense / pruned | runs "
        "| scatter | cores |",
        "|---|---|---|---:|---:|---:|---:|---:|---|---|---:|---:|---|",
    ]
    for row in rows:
        macs = " / ".join(f"{row['macs'][form] / 1e9:.2f}" for form in FORMS)
        memory = f"{row['peak_mb']['dense']:.0f} / {row['peak_mb']['pruned']:.0f}"
        for engine, found in row["engines"].items():
            times = [f"{found[f'{form}_ms']:.1f}" for form in FORMS]
            ratios = [f"**{found['speedup']:.2f}**", f"{found['efficiency']:.2f}"]
            place = "x".join(map(str, row["input"]))
            ends = [macs, memory, str(row["runs"]), f"{scatter(row):.0%}", row.get("cores", "any")]
            cells = [row["row"], place, engine, *times, *ratios, *ends]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return docs/results/latency.md."""
    return f"""# Latency

Made by `python benchmarks/latency.py` on {rows[0]["machine"]}, {rows[0]["threads"]} threads, with
torch {rows[0]["torch"]}. Random weights: what is executed depends on shapes alone. Medians of runs
in turns; ratios within a row are what counts, milliseconds belong to one machine. Every row has a
process of its own, since allocators adapt to what ran before. Every timed run follows an untimed
one of the same form, so that caches are as in steady use; every engine compiles every form for the
input size of its row.

The two cores are a virtual machine's, which stand at one last-level cache most of the time and at
two the rest. That is told by how long threads take to exchange what they wrote
(`benchmarks/cores.py`). With `--cores together` a run of any form counts only if the cores
shared the cache before and after it, as two cores of one processor do; with `--cores apart` only if
they did not.

A row's name is the model and its prune ratio in per cent; -batch-N is the input's first size,
-fixed has one set of neurons for all inputs, -apart says that the cores shared no cache.

- **dense** is the published model, in files with its own norms, **rewritten** has the lossless
  rewrites alone, **pruned** has the gates too, which choose neurons for every input inside the
  timed call.
- **cores**: which runs counted, as above.
- **speedup** is dense over pruned. **efficiency** is (rewritten ms / pruned ms) over (rewritten
  MACs / pruned MACs): 1 means that every multiply-add that the gates saved was time saved.
- **scatter** is the largest distance between the quartiles of any form of the row, of its median.
- **peak MB**: resident memory of a process that runs this form alone in PyTorch.

{table(rows)}

What was tried to get here, and what it gave, is in [performance](../notes/performance.md).
"""


def fallen(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Name the engines whose speedup fell by more than the tolerance."""
    return [
        f"{now['row']}, {engine}: {found['speedup']:.2f}, was {once['speedup']:.2f}"
        for engine, found in now["engines"].items()
        if (once := before["engines"].get(engine))
        and found["speedup"] < (1 - TOLERANCE) * once["speedup"]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--cores", choices=CORES, default="any", help="which runs count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="compare with the stored results")
    parser.add_argument("--page", action="store_true", help="write the stored results anew")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"no row is called {unknown[0]}; there are: {', '.join(ROWS)}")
    torch.set_num_threads(options.threads)
    if options.memory:
        print(peak_mb(ROWS[options.rows[0]], options.memory))
        return 0
    if options.row:
        print(json.dumps(measured(options.rows[0], options.runs, options.cores)))
        return 0
    path = options.output / "latency.json"
    known = {row["row"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    problems = []
    if options.page:
        write_file(path.with_suffix(".md"), page(in_order(known)))
        return 0
    for name in options.rows or ROWS:
        row = measured_alone(name, options)
        print(table([row]), flush=True)
        if options.check:
            before = known.get(row["row"])
            problems += fallen(row, before) if before else [f"{row['row']}: nothing stored"]
            continue
        known[row["row"]] = row
        rows = in_order(known)
        options.output.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(rows, indent=1) + "\n")
        write_file(path.with_suffix(".md"), page(rows))
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
