"""Hold every model of the zoo to every law, beside a dense model that was built on its own.

Each model is built twice: one is gated, the other stays as it is and says what is right. A model
that has its file in RUNS is skipped, so that a run that was stopped goes on where it was.

    python benchmarks/soundness.py                    # all, and docs/results/soundness.md
    python benchmarks/soundness.py bert t5 --again    # some, and say what is broken
    python benchmarks/soundness.py --table            # the page alone, from what is there
    python benchmarks/soundness.py --jobs 2           # processes at once
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[variable] = "1"

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import dynprune  # noqa: E402
from dynprune.errors import DynpruneError  # noqa: E402
from dynprune.example import Example  # noqa: E402
from dynprune.gate import attached, is_gated  # noqa: E402
from dynprune.host.modes import at_inference  # noqa: E402
from dynprune.laws import LAWS, Case, Law, Subject, judge  # noqa: E402
from dynprune.laws.subject import answer  # noqa: E402
from dynprune.pipeline import restore  # noqa: E402
from tests.wider_zoo import WIDER  # noqa: E402
from tests.zoo import ZOO  # noqa: E402

RUNS = ROOT / "runs" / "soundness"
PAGE = ROOT / "docs" / "results" / "soundness.md"

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "calibrated": ("sparsity.final=0.5", "apply.gate.align=1"),
    "straight-through": (
        "sparsity.final=0.7",
        "apply.gate.align=1",
        "apply.gate.mode=straight_through",
    ),
}
"""How models are gated: overrides of the recipe ``any``."""

CALIBRATION = 12  # inputs
BATCHES = (1, 2, 4)  # rows of the calls that laws are tried on


@dataclass(frozen=True)
class Model:
    """A model of either zoo.

    Attributes:
        build: gives the same model every time.
        call: gives a call with so many rows, others for every seed.
    """

    build: Callable[[], nn.Module]
    call: Callable[[int, int], Example]


def models() -> dict[str, Model]:
    """Return both zoos in one form."""
    found = {}
    for name, animal in ZOO.items():
        found[name] = Model(
            animal.published,
            lambda rows, seed, a=animal: _seeded(a.example, seed).batched(rows, seed=seed),
        )
    for name, species in WIDER.items():
        found[name] = Model(
            species.made, lambda rows, seed, s=species: _seeded(lambda: s.call(rows), seed)
        )
    return found


def _seeded(make: Callable[[], Example], seed: int) -> Example:
    torch.manual_seed(seed)
    return make()


def restored(subject: Subject) -> Iterator[Case]:
    """What is restored is the dense model, bit for bit."""

    def weights(model: nn.Module) -> list[Tensor]:
        state = model.state_dict()
        return [state[name] for name in sorted(state)]

    back = restore(subject.copy())
    yield Case(
        "weights", lambda: weights(back), lambda: weights(subject.dense), own=True, exact=True
    )
    for number, call in enumerate(subject.calls, 1):
        yield Case(
            f"call {number}",
            lambda call=call: answer(back, call),
            lambda call=call: subject.run(call, subject.dense),
            own=True,
            exact=True,
        )


EVERY_LAW: Mapping[str, Law] = {**LAWS, "restored": restored}


@contextmanager
def _quietly() -> Iterator[None]:
    """Drop warnings and logs, and run on one thread, for the block."""
    disabled, threads = logging.root.manager.disable, torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            torch.set_num_threads(1)
            yield
    finally:
        logging.disable(disabled)
        torch.set_num_threads(threads)


@_quietly()
def try_model(name: str, setting: str) -> dict[str, Any]:
    """Gate a model and hold it to every law; the record is plain values."""
    started = time.process_time()
    known = models()[name]
    model, dense = known.build(), known.build()
    record: dict[str, Any] = {"model": name, "setting": setting, "groups": [], "laws": []}
    try:
        recipe = dynprune.load_recipe("any", list(SETTINGS[setting]))
        calibration = [known.call(2, 1000 + seed) for seed in range(CALIBRATION // 2)]
        dynprune.apply(model, known.call(2, 0), recipe, calibration=calibration)
    except DynpruneError as error:
        record["refused"] = str(error)
    except Exception as error:  # a bug of ours, which the page shows
        record["crashed"] = f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc()
    if is_gated(model):
        record["groups"] = [
            {"name": p.group.name, "kind": p.group.kind, "mode": p.mode, "reason": p.reason}
            for p in attached(model).plans
        ]
        calls = tuple(known.call(rows, rows) for rows in BATCHES)
        with at_inference(model), at_inference(dense), tempfile.TemporaryDirectory() as place:
            subject = Subject(model, dense, calls, Path(place))
            for law in EVERY_LAW:
                verdict = judge(law, EVERY_LAW[law], subject)
                record["laws"].append(
                    {
                        **verdict.to_json(),
                        "held": verdict.held,
                        "ties": verdict.ties,
                        "broken": verdict.broken,
                        "refused": verdict.refused,
                        "excused": verdict.excused,
                    }
                )
    record["cpu_seconds"] = round(time.process_time() - started, 1)
    return record


def _path(name: str, setting: str) -> Path:
    return RUNS / f"{name}.{setting}.json"


def _try_and_write(job: tuple[str, str]) -> dict[str, Any]:
    record = try_model(*job)
    RUNS.mkdir(parents=True, exist_ok=True)
    beside = _path(*job).with_suffix(".tmp")
    beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    beside.replace(_path(*job))
    return record


def told(record: Mapping[str, Any]) -> str:
    """Say in a few lines what became of a model."""
    head = f"{record['model']} {record['setting']} [{record['cpu_seconds']} s]:"
    if "crashed" in record:
        return f"{head} CRASHED {record['crashed'][:200]}"
    if "refused" in record:
        return f"{head} refused: {record['refused'][:160]}"
    compared = sum(law["comparisons"] for law in record["laws"])
    lines = [f"{head} {compared} comparisons"]
    for law in record["laws"]:
        lines += [f"    broken: {law['name']}: {text[:200]}" for text in law["broken"][:4]]
        lines += [f"    refused: {law['name']}: {text[:200]}" for text in law["refused"][:1]]
    return "\n".join(lines)


def summary(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Count over all models: what held, what was broken, and what was refused with which reason."""
    records = list(records)
    laws: dict[str, Counter[str]] = {name: Counter() for name in EVERY_LAW}
    reasons: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    broken: dict[str, list[str]] = defaultdict(list)
    calls: Counter[str] = Counter()
    for record in records:
        for group in record["groups"]:
            modes[group["mode"]] += 1
            if group["mode"] == "refused":
                reasons[_general(group["reason"] or "")] += 1
        for law in record["laws"]:
            count = laws[law["name"]]
            count["models"] += law["status"] != "not tried"
            count["not_tried"] += law["status"] == "not tried"
            count["comparisons"] += law["held"] + len(law["broken"])
            count["ties"] += law["ties"]
            count["broken"] += len(law["broken"])
            count["refused"] += len(law["refused"])
            for text in law["broken"]:
                broken[law["name"]].append(f"{record['model']} ({record['setting']}): {text}")
            for text in law["refused"]:
                calls[text.partition(": ")[2]] += 1
    return {
        "models": len({record["model"] for record in records}),
        "trials": len(records),
        "comparisons": sum(count["comparisons"] for count in laws.values()),
        "broken": sum(count["broken"] for count in laws.values()),
        "crashed": [f"{r['model']}: {r['crashed']}" for r in records if "crashed" in r],
        "refused_models": sorted(
            {f"{r['model']}: {r['refused']}" for r in records if "refused" in r}
        ),
        "laws": {name: dict(count) for name, count in laws.items()},
        "groups": dict(modes),
        "refused_groups": dict(reasons.most_common()),
        "refused_calls": dict(calls.most_common()),
        "broken_cases": dict(broken),
    }


def _general(reason: str) -> str:
    """Leave numbers and names out of a reason, so that like ones are counted together."""
    words = []
    for word in reason.split():
        known = any(c in word for c in "._") and any(c.isalpha() for c in word[:-1].strip("._"))
        words.append("…" if (known and not word.endswith(".")) or word.isdigit() else word)
    return " ".join(words)[:160]


def page(found: Mapping[str, Any]) -> str:
    """Write the summary as Markdown."""
    lines = [
        "# Held to its laws",
        "",
        "Every model of the zoo (small random models of transformers' library and of papers:",
        "encoders, decoders, detectors, video, sound, recommenders, diffusion) is built twice.",
        "One is gated, the other stays dense and says what is right. `dynprune check` runs the",
        "same laws on your model.",
        "",
        f"{found['models']} models, {found['trials']} trials, {found['comparisons']:,} "
        f"comparisons, **{found['broken']} wrong**, {len(found['crashed'])} crashes. A law counts",
        "where the dense model has it. A tie is a comparison in which rounding of the weights",
        "moves the model as far.",
        "",
        "    python benchmarks/soundness.py",
        "",
        "| law | models | comparisons | of them ties | wrong | calls refused | not tried |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, c in found["laws"].items():
        figures = (
            c.get(k, 0) for k in ("models", "comparisons", "ties", "broken", "refused", "not_tried")
        )
        lines.append(f"| {name} | " + " | ".join(str(n) for n in figures) + " |")
    lines += ["", "## What was refused", ""]
    groups = ", ".join(f"{n} {mode}" for mode, n in sorted(found["groups"].items()))
    lines += [f"Groups: {groups}.", "", "| reason | groups |", "|---|---|"]
    lines += [f"| {reason} | {n} |" for reason, n in found["refused_groups"].items()]
    if found["refused_models"]:
        lines += ["", "Models of which nothing is gated:", ""]
        lines += [f"- {text}" for text in found["refused_models"]]
    if found["refused_calls"]:
        lines += ["", "Calls that a gated model refuses although the dense one answers:", ""]
        lines += [f"- {text} ({n} times)" for text, n in found["refused_calls"].items()]
    if found["broken_cases"] or found["crashed"]:
        lines += ["", "## What is wrong", ""]
        lines += [f"- crash: {text}" for text in found["crashed"]]
        for law, cases in found["broken_cases"].items():
            lines += [f"- {law}: {text}" for text in cases]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="*", help="which; all where none is named")
    parser.add_argument("--setting", choices=SETTINGS, help="one way of gating alone")
    parser.add_argument("--again", action="store_true", help="try models that have their file, too")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--table", action="store_true", help="write the page from what is there")
    chosen = parser.parse_args()
    names = chosen.model or list(models())
    settings = [chosen.setting] if chosen.setting else list(SETTINGS)
    every = [(name, setting) for setting in settings for name in names]
    jobs = [job for job in every if chosen.again or not _path(*job).is_file()]
    if jobs and not chosen.table:
        with ProcessPoolExecutor(chosen.jobs) as pool:
            for number, record in enumerate(pool.map(_try_and_write, jobs), 1):
                print(f"{number}/{len(jobs)} {told(record)}", flush=True)
    records = [json.loads(_path(*job).read_text("utf-8")) for job in every if _path(*job).is_file()]
    found = summary(records)
    print(
        f"{found['models']} models, {found['comparisons']} comparisons, {found['broken']} wrong, "
        f"{len(found['crashed'])} crashes"
    )
    if not chosen.model and not chosen.setting:
        PAGE.write_text(page(found), encoding="utf-8")
        text = json.dumps(found, indent=1, ensure_ascii=False)
        PAGE.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return 1 if found["broken"] or found["crashed"] else 0


if __name__ == "__main__":
    sys.exit(main())
