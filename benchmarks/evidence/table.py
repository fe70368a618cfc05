"""Turn results into the tables of the page, between its markers; prose stays as it is."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .rows import DATASETS, ROWS

__all__ = ["load_results", "tables", "update_page"]

BEGIN, END = "<!-- tables: benchmarks/accuracy.py --table -->", "<!-- end of tables -->"

Results = dict[tuple[str, str], list[dict[str, Any]]]
"""Results of every seed, by data set and row."""


def load_results(directory: Path) -> Results:
    """Read every result of a directory."""
    found: Results = defaultdict(list)
    for path in sorted(directory.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found[record["dataset"], record["row"]].append(record)
    return found


def update_page(page: Path, directory: Path) -> None:
    """Write the tables into a page, between its markers."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise SystemExit(f"{page} lacks the lines {BEGIN!r} and {END!r}")
    body = tables(load_results(directory))
    page.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after}", encoding="utf-8")


def tables(results: Results) -> str:
    """Return all tables as Markdown."""
    parts = []
    for dataset in DATASETS:
        rows = [row for row in ROWS if (dataset, row.name) in results]
        if rows:
            parts += [f"### {dataset}", _main_table(results, dataset, [r.name for r in rows])]
    parts += ["### mIoU by world, and overlap of kept sets", _world_table(results)]
    for dataset in DATASETS:
        parts += [f"### IoU by class, {dataset}", _class_table(results, dataset)]
    parts += ["### Overlap of kept sets by group", _group_table(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _main_table(results: Results, dataset: str, names: Sequence[str]) -> str:
    about = {row.name: row.about for row in ROWS}
    teacher = next(iter(results.get((dataset, "teacher"), [])), None)
    lines = []
    for name in names:
        runs = results[dataset, name]
        macs = runs[0]["macs"]
        fewer = "" if teacher is None else f"{1 - macs / teacher['macs']:.1%}"
        against = "" if teacher is None else f"{100 * (_mean(runs) - teacher['miou']):+.2f}"
        lines.append(
            (
                f"`{name}`",
                about[name],
                _score(runs),
                against,
                f"{macs / 1e9:.3f}",
                fewer,
                _overlap(runs),
                _gate_share(runs[0], "parameters", teacher),
                _gate_share(runs[0], "macs", teacher),
                str(runs[0]["steps"]),
                f"{statistics.mean(r['seconds'] for r in runs) / 60:.1f}",
                f"{max(r['peak_memory_mb'] for r in runs) / 1024:.1f}",
            )
        )
    head = ("row", "", "mIoU", "points to teacher", "G MACs", "fewer", "overlap")
    gates = ("gates, of parameters", "of MACs")
    return _table((*head, *gates, "steps", "minutes", "GB"), lines)


def _world_table(results: Results) -> str:
    lines = []
    for (dataset, name), runs in _ordered(results):
        if not runs[0]["per_world"]:
            continue
        worlds = {w: statistics.mean(r["per_world"][w] for r in runs) for w in runs[0]["per_world"]}
        overlap = runs[0]["overlap"] or {}
        lines.append(
            (
                f"{dataset} `{name}`",
                *(f"{value:.4f}" for value in worlds.values()),
                *(_fraction(overlap.get(key)) for key in ("same_world", "different_worlds")),
            )
        )
    domains_of = next((r[0]["per_world"] for _, r in _ordered(results) if r[0]["per_world"]), {})
    return _table(("", *domains_of, "overlap in a world", "between worlds"), lines) if lines else ""


def _class_table(results: Results, dataset: str) -> str:
    shown = [(n, r) for (d, n), r in _ordered(results) if d == dataset and _is_shown(n)]
    if not shown:
        return ""
    classes = [c for c, iou in shown[0][1][0]["per_class"].items() if iou is not None]
    lines = [
        (c, *(f"{statistics.mean(r['per_class'][c] for r in runs):.3f}" for _, runs in shown))
        for c in classes
    ]
    return _table(("class", *(f"`{name}`" for name, _ in shown)), lines)


def _group_table(results: Results) -> str:
    shown = [
        (f"{d} `{n}`", r[0]["overlap_per_group"])
        for (d, n), r in _ordered(results)
        if n.startswith("distilled") and r[0]["overlap_per_group"]
    ]
    if not shown:
        return ""
    lines = [
        (f"`{group}`", *(_pair(groups.get(group)) for _, groups in shown)) for group in shown[0][1]
    ]
    return "Within a world / between worlds, or over all where there is one.\n\n" + _table(
        ("group", *(name for name, _ in shown)), lines
    )


def _ordered(results: Results) -> Iterable[tuple[tuple[str, str], list[dict[str, Any]]]]:
    for dataset in DATASETS:
        for row in ROWS:
            if (dataset, row.name) in results:
                yield (dataset, row.name), results[dataset, row.name]


def _is_shown(name: str) -> bool:
    return name in ("teacher", "control") or name.startswith(("distilled", "fixed"))


def _mean(runs: Sequence[dict[str, Any]]) -> float:
    return statistics.mean(run["miou"] for run in runs)


def _score(runs: Sequence[dict[str, Any]]) -> str:
    if len(runs) == 1:
        return f"{_mean(runs):.4f}"
    spread = statistics.stdev(run["miou"] for run in runs)
    return f"{_mean(runs):.4f} ± {spread:.4f} ({len(runs)} seeds)"


def _overlap(runs: Sequence[dict[str, Any]]) -> str:
    overlap = runs[0]["overlap"]
    if overlap is None:
        return ""
    between = overlap.get("different_worlds")
    return _fraction(overlap["all"]) + ("" if between is None else f" ({between:.3f} b.w.)")


def _gate_share(run: dict[str, Any], unit: str, teacher: dict[str, Any] | None) -> str:
    """Return what the gates cost over what the dense teacher has."""
    if teacher is None or not run["gates"][unit]:
        return ""
    return f"{run['gates'][unit] / teacher[unit]:.3%}"


def _pair(overlap: dict[str, Any] | None) -> str:
    if overlap is None:
        return ""
    if overlap["different_worlds"] is None:
        return _fraction(overlap["all"])
    return f"{overlap['same_world']:.2f} / {overlap['different_worlds']:.2f}"


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
