"""Quantise models after training in both engines and score them there, beside themselves in fp32.

Give directories that dynprune wrote, or transformers directories: a dense model is the rival, one
with fixed groups (`apply.gate.choose: fixed`) is pruned and quantised. A line a file is printed and
stored as soon as it is known.

    python benchmarks/int8.py MODEL... --data DIR --name camvid     # docs/results/int8.json and .md
    python benchmarks/int8.py --page                                # write int8.md anew

Seconds are of the processor, all threads together.
"""

import argparse
import json
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from dynprune.data import open_dataset
from dynprune.export.engine_file import open_engine_file
from dynprune.export.onnx import export_onnx
from dynprune.export.openvino import export_openvino
from dynprune.files import write_file
from dynprune.measure.macs import parameter_count
from dynprune.models import LoadedModel, load_model
from dynprune.pipeline.int8 import calibration_on, facts_of
from dynprune.pipeline.pictures import picture_rules
from dynprune.tasks.evaluate import evaluate

RESULTS = Path(__file__).parents[1] / "docs" / "results"
WRITERS = {"onnx": (export_onnx, "model.onnx"), "openvino": (export_openvino, "model.xml")}


def seconds() -> float:
    """Processor seconds of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(
    loaded: LoadedModel, data: str, engine: str, images: int, before: dict[str, Any]
) -> dict[str, Any]:
    """Quantise one model for one engine and score the file."""
    rules = picture_rules(None, loaded)
    training = open_dataset(data, "train", values=rules.values)
    validation = open_dataset(data, "val", values=rules.values)
    write, name = WRITERS[engine]
    began = seconds()
    with tempfile.TemporaryDirectory() as scratch:
        calibration = calibration_on(loaded, training, rules.preprocessing, images=images)
        made: Any = write(
            loaded.module,
            loaded.example,
            Path(scratch) / name,
            precision="int8",
            calibration=calibration,
            facts=facts_of(loaded, rules),
        )
        took = seconds() - began
        size = sum(path.stat().st_size for path in Path(scratch).iterdir())
        file, facts = open_engine_file(made.path, threads=torch.get_num_threads())
        found = evaluate(file.module, validation, facts.preprocessing)
    return {
        **before,
        "engine": engine,
        "miou_int8": found.miou,
        "bytes_int8": size,
        "processor_seconds": took,
        "images": images,
        "products": Counter(str(p.precision) for p in made.products),
        "left_out": len(made.left_out),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| data | model | engine | mIoU fp32 | mIoU int8 | points lost | MB fp32 weights "
        "| MB int8 file | products in int8 / fp32 | calibration pictures | processor s |",
        "|---|---|---|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for row in rows:
        lost = 100 * (row["miou_fp32"] - row["miou_int8"])
        ran = row["products"]
        lines.append(
            f"| {row['data']} | {row['model']} | {row['engine']} | {row['miou_fp32']:.4f} "
            f"| {row['miou_int8']:.4f} | {lost:.2f} | {row['bytes_fp32'] / 1e6:.1f} "
            f"| {row['bytes_int8'] / 1e6:.1f} | {ran.get('int8', 0)} / {ran.get('fp32', 0)} "
            f"| {row['images']} | {row['processor_seconds']:.0f} |"
        )
    return "\n".join(lines)


def page(rows: Sequence[dict[str, Any]]) -> str:
    return f"""# int8: what it costs in mIoU, through the engine

Made by `python benchmarks/int8.py MODEL... --data DIR --name NAME`. Post-training quantisation
alone: nncf for OpenVINO, onnxruntime.quantization for ONNX Runtime, calibrated on pictures of the
training split. Scores are of the whole validation split, computed by the engine from the int8 file,
beside the same model in fp32 in PyTorch. `dense` is the published architecture; `fixed-0.5` and
`fixed-0.7` have lost 50 and 70 % of the neurons of their groups for good
(`apply.gate.choose: fixed`, calibrated and refitted, no training).

{table(rows)}

Products are counted as the engine says that it runs them. What stays in fp32 was left out on
purpose: the product that makes the logits, and in OpenVINO depthwise convolutions
([decision 95](../decisions/0095-depthwise-convolutions-stay-in-float32.md)). Of the dense model
OpenVINO merges one product with its norm and does not tell how it runs that one.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--data", metavar="DIR")
    parser.add_argument("--name", default="data", help="of the data, for the table")
    parser.add_argument("--engines", default="onnx,openvino")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="write the stored results anew")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = options.output / "int8.json"
    for name in options.models:
        loaded = load_model(name)
        rules = picture_rules(None, loaded)
        validation = open_dataset(options.data, "val", values=rules.values)
        before = {
            "data": options.name,
            "model": "-".join(Path(name).name.split("-")[-2:]) if "fixed" in name else "dense",
            "miou_fp32": evaluate(loaded.module, validation, rules.preprocessing).miou,
            "bytes_fp32": 4 * parameter_count(loaded.module),
        }
        for engine in options.engines.split(","):
            row = measured(loaded, options.data, engine, options.images, before)
            print(table([row]), flush=True)
            rows = json.loads(path.read_text()) if path.exists() else []
            key = ("data", "model", "engine")
            rows = [old for old in rows if any(old[k] != row[k] for k in key)] + [row]
            rows.sort(key=lambda old: tuple(old[k] for k in key))
            write_file(path, json.dumps(rows, indent=1) + "\n")
            write_file(path.with_suffix(".md"), page(rows))
    if options.page:
        write_file(path.with_suffix(".md"), page(json.loads(path.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
