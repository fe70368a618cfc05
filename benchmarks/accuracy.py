"""Measure rows of docs/results/accuracy.md, a JSON file each, and table them.

A row that has its file is skipped; one that was stopped goes on where it was. The data sets and
their teachers are read from ../shared unless told otherwise.

    python benchmarks/accuracy.py --list
    python benchmarks/accuracy.py distilled-50 --dataset camvid --seed 0
    python benchmarks/accuracy.py --all
    python benchmarks/accuracy.py --table
"""

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path

from evidence.rows import DATASETS, ROWS, find_row
from evidence.run import Places, result_path, run_row
from evidence.table import update_page

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
PAGE = ROOT / "docs/results/accuracy.md"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("row", nargs="?", help="which row; see --list")
    parser.add_argument("--dataset", choices=DATASETS, default="camvid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="every row, data set and seed in turn")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--table", action="store_true", help=f"write the tables of {PAGE.name}")
    parser.add_argument("--again", action="store_true", help="measure a row that has its file")
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/accuracy")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/accuracy")
    parser.add_argument("--threads", type=int, help="of a row's process; the recipe's by default")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    places = Places(options.data, options.models, options.results, options.runs, options.threads)
    if options.list:
        for row in ROWS:
            print(f"{row.name:20} {'+'.join(row.datasets):15} {len(row.seeds)} seeds  {row.about}")
    elif options.table:
        update_page(PAGE, places.results)
    elif options.all:
        every(places)
    elif options.row is None:
        parser.error("name a row, or give --all, --list or --table")
    else:
        one(options.row, options.dataset, options.seed, places, again=options.again)


def one(name: str, dataset: str, seed: int, places: Places, *, again: bool) -> None:
    row = find_row(name, dataset)
    if row is None:
        raise SystemExit(f"{dataset} has no row {name!r}; see --list")
    path = result_path(places, row, dataset, seed)
    if path.is_file() and not again:
        print(path.read_text(encoding="utf-8"), end="")
        return
    result = run_row(row, dataset, seed, places)
    shown = ("row", "dataset", "seed", "miou", "macs", "overlap", "steps", "seconds")
    print(json.dumps({key: result[key] for key in shown}))


def every(places: Places) -> None:
    """Run what is missing, first seeds first, each in a process of its own (peak memory is its)."""
    wanted = [
        (seed, row, dataset) for row in ROWS for dataset in row.datasets for seed in row.seeds
    ]
    for seed, row, dataset in sorted(wanted, key=lambda item: item[0]):
        if result_path(places, row, dataset, seed).is_file():
            continue
        command = [sys.executable, __file__, row.name, "--dataset", dataset, "--seed", str(seed)]
        for name in ("data", "models", "results", "runs"):
            command += [f"--{name}", str(getattr(places, name))]
        if places.threads is not None:
            command += ["--threads", str(places.threads)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
