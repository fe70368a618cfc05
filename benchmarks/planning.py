"""Measure what planning costs: processor seconds and peak memory of `inspect` and `apply`.

Every case runs in a process of its own, with one thread, after a call on a tiny model that imports
what is needed: processor seconds (user and system) of the call, and how far resident memory rose
above what stood there before it, which is the weights, the inputs and the libraries. Weights are
random, but for SegFormer-B0, which is trained and calibrated on pictures.

    python benchmarks/planning.py                       # all cases: docs/results/planning.json, .md
    python benchmarks/planning.py b5 vit-l              # some
    python benchmarks/planning.py --before OTHER/.venv/bin/python   # another checkout beside it
"""

import argparse
import gc
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
SHARED = ROOT.parent / "shared"
PICTURES = 32
"""That `apply` is calibrated on, as the recipe has it."""


def segformer_b5() -> tuple[Any, Any]:
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[3, 6, 40, 3],
        hidden_sizes=[64, 128, 320, 512],
        decoder_hidden_size=768,
        num_labels=150,
    )
    return SegformerForSemanticSegmentation(config), torch.randn(1, 3, 512, 512)


def vit_l() -> tuple[Any, Any]:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    )
    return ViTForImageClassification(config), torch.randn(1, 3, 224, 224)


def bert_large() -> tuple[Any, Any]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    )
    return BertForSequenceClassification(config), tokens(config.vocab_size)


def swin_b() -> tuple[Any, Any]:
    import torch
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32])
    return SwinForImageClassification(config), torch.randn(1, 3, 224, 224)


def decoder() -> tuple[Any, Any]:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config), tokens(config.vocab_size)


def tokens(vocabulary: int, length: int = 128) -> dict[str, Any]:
    """Return one call of a language model."""
    import torch

    ids = torch.randint(1000, min(vocabulary, 30000), (1, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def segformer_b0(shared: Path) -> tuple[Any, list[Any]]:
    """Return the trained SegFormer-B0 and pictures to calibrate it on."""
    import numpy as np
    import torch
    from PIL import Image
    from transformers import SegformerForSemanticSegmentation

    model = SegformerForSemanticSegmentation.from_pretrained(shared / "models/segformer-b0-camvid")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    paths = sorted((shared / "data/camvid/images/train").iterdir())
    chosen = [paths[place * len(paths) // PICTURES] for place in range(PICTURES)]
    pictures = [torch.from_numpy(np.array(Image.open(p).convert("RGB"))) / 255 for p in chosen]
    return model, [((x - mean) / std).permute(2, 0, 1)[None].contiguous() for x in pictures]


INSPECT: Mapping[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "b5": ("inspect SegFormer-B5, 512x512", segformer_b5),
    "vit-l": ("inspect ViT-L, 224x224", vit_l),
    "bert-large": ("inspect BERT-large, 128 tokens", bert_large),
    "swin-b": ("inspect Swin-B, 224x224", swin_b),
    "decoder": ("inspect a decoder of 0.5 B, 128 tokens", decoder),
}
APPLY: Mapping[str, tuple[str, list[str]]] = {
    "b0-uniform": ("apply SegFormer-B0, one ratio for all", []),
    "b0-sensitivity": (
        "apply SegFormer-B0, ratios by sensitivity",
        ["sparsity.distribution=sensitivity"],
    ),
    "b0-latency": (
        "apply SegFormer-B0, ratios by sensitivity and time",
        ["sparsity.distribution=sensitivity", "apply.target=latency"],
    ),
}
CASES = {name: title for name, (title, _) in {**INSPECT, **APPLY}.items()}


def measured(name: str, shared: Path) -> dict[str, float]:
    """Run one case in this process."""
    import torch

    import dynprune

    torch.manual_seed(0)
    torch.set_num_threads(1)
    if name in INSPECT:
        model, call = INSPECT[name][1]()
        model.eval()

        def run() -> tuple[Any, ...]:
            return dynprune.inspect(model, call).plans
    else:
        model, pictures = segformer_b0(shared)
        settings = ["sparsity.final=0.5", *APPLY[name][1]]
        recipe = dynprune.load_recipe("segformer-b0-camvid", settings)

        def run() -> tuple[Any, ...]:
            gated = dynprune.apply(model, pictures[0], recipe, calibration=pictures)
            return tuple(vars(gated)["_dynprune"].plans)

    small = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
    dynprune.inspect(small.eval(), torch.randn(2, 8))  # what is imported on the way is no planning
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    standing = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrusage(resource.RUSAGE_SELF)
    plans = run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    modes = [plan.mode for plan in plans]
    return {
        "processor_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mb": (after.ru_maxrss * 1024 - standing) / 1e6,
        "weights_mb": weights / 1e6,
        "groups": len(modes),
        "gated": sum(mode != "refused" for mode in modes),
        "compact": modes.count("compact"),
    }


def measured_alone(name: str, python: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run one case in a process of its own, by the interpreter of some checkout."""
    command = [str(python), __file__, name, "--here", "--shared", str(options.shared)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    runs: list[dict[str, float]] = []
    for _ in range(options.repeats):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    least = min(runs, key=lambda run: run["processor_s"])
    return {**least, "peak_mb": max(run["peak_mb"] for run in runs)}


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]], before: str) -> str:
    """Write the rows as a page."""
    lines = [
        "# What planning costs",
        "",
        "Processor seconds (user and system, one thread) and the peak of resident memory beside",
        "what stood there before the call, by `python benchmarks/planning.py`, a process a case.",
        f"*Before* is {before}.",
        f"Weights are random, but for SegFormer-B0, calibrated on {PICTURES} pictures of 480x360.",
        "Groups: gated, of them compact, of all found. Other work ran on the machine meanwhile:",
        "seconds of one case differ by up to a third from run to run, and peaks by some 300 MB.",
        "",
        "| call | weights, MB | groups | seconds before | seconds | peak before, MB | peak, MB |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, title in CASES.items():
        if name not in rows:
            continue
        now, then = rows[name].get("now"), rows[name].get("before")
        some = now or then
        assert some is not None
        figures = [
            f"{some['weights_mb']:.0f}",
            f"{some['gated']:.0f}, {some['compact']:.0f} / {some['groups']:.0f}",
            *(f"{r['processor_s']:.1f}" if r else "" for r in (then, now)),
            *(f"{r['peak_mb']:.0f}" if r else "" for r in (then, now)),
        ]
        lines.append("| " + " | ".join([title, *figures]) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="all where none is named")
    parser.add_argument("--before", type=Path, help="the interpreter of another checkout")
    parser.add_argument("--before-is", default="", help="what the other checkout is, in words")
    parser.add_argument("--shared", type=Path, default=SHARED, help="where data and models are")
    parser.add_argument("--repeats", type=int, default=1, help="runs; the least seconds count")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.here:
        print(json.dumps(measured(options.cases[0], options.shared)))
        return
    path = RESULTS / "planning.json"
    known = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    known["machine"], known["before"] = (
        platform.machine(),
        options.before_is or known.get("before", "another checkout"),
    )
    pythons = {"now": Path(sys.executable)}
    if options.before is not None:
        pythons["before"] = options.before
    for name in options.cases or CASES:
        for column, python in pythons.items():
            found = measured_alone(name, python, options)
            print(f"{name:16} {column:7} {json.dumps(found)}", flush=True)
            known["rows"].setdefault(name, {})[column] = found
            path.write_text(json.dumps(known, indent=1) + "\n")
    (RESULTS / "planning.md").write_text(table(known["rows"], known["before"]))


if __name__ == "__main__":
    main()
