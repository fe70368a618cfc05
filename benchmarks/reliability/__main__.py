"""Measure what docs/reliability.md says.

    python -m benchmarks.reliability [--only kills,disk,damage,hostile,rivals] [--write]

Everything happens in a temporary directory with a tiny model. Linux alone, since it forks; filling
a disk needs root, and is skipped without. ``--write`` puts the figures into docs/reliability.md and
docs/results/reliability.json.
"""

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.reliability import damage, disk, hostile, kills, rivals
from benchmarks.reliability.process import command, import_everything
from benchmarks.reliability.section import Section
from benchmarks.reliability.world import World, make_world

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
FIGURES = ROOT / "docs" / "results" / "reliability.json"
BEGIN, END = "<!-- figures begin -->", "<!-- figures end -->"

Part = Callable[[World, Path, argparse.Namespace], list[Section]]

PARTS: dict[str, Part] = {
    "kills": lambda world, work, asked: [kills.killed_runs(world, work, asked.kills)],
    "disk": lambda world, work, _: [
        part(world, _directory(work / part.__name__))
        for part in (disk.full_disk, disk.full_disk_in_a_run, disk.small_files, disk.read_only)
    ],
    "damage": lambda world, work, asked: damage.damaged_files(world, work, asked.mutations),
    "hostile": lambda world, work, _: [hostile.hostile_input(world, work)],
    "rivals": lambda world, work, _: [rivals.rivals(world, work)],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.reliability")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--mutations", type=int, default=1000, help="of each kind of file")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/")
    asked = parser.parse_args()
    names = asked.only.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no part is called {unknown[0]}; there are {', '.join(PARTS)}")
    import_everything()
    began, sections = time.monotonic(), []
    with TemporaryDirectory(prefix="reliability-") as directory:
        world = make_world(Path(directory) / "world")
        made = command(world.apply(world.gated), seconds=120)
        if made.code:
            raise RuntimeError(made.err)
        idle = command(["--version"]).megabytes
        spent = _cpu_seconds()
        for name in names:
            found = PARTS[name](world, _directory(Path(directory) / name), asked)
            for section in found:
                print(section.row(), *section.faults[:20], sep="\n  ", flush=True)
            sections += found
            if asked.write:
                _write(name, found, idle, _cpu_seconds() - spent)
            spent = _cpu_seconds()
    print(f"{(time.monotonic() - began) / 60:.1f} minutes, {_cpu_seconds() / 60:.1f} of one core")
    return int(any(section.faults for section in sections))


def _directory(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _cpu_seconds() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def _write(part: str, sections: list[Section], idle: float, seconds: float) -> None:
    """Put a part's figures into the JSON, and the tables of all parts between the page's marks."""
    known = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    known[part] = {
        "sections": [section.to_json() for section in sections],
        "rows": [section.row() for section in sections],
        "idle MB": round(idle, 1),
        "cpu_minutes": round(seconds / 60, 1),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    known = {name: known[name] for name in PARTS if name in known}
    FIGURES.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    table = ["| what was done | times | wrong | how it ended |", "|---|---|---|---|"]
    table += [row for found in known.values() for row in found["rows"]]
    minutes = sum(found["cpu_minutes"] for found in known.values())
    note = (
        f"`python -m benchmarks.reliability --write`, {minutes:.0f} minutes of one core. A process "
        f"that does nothing has {idle:.0f} MB at its peak, since it has imported everything."
    )
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    block = "\n".join([BEGIN, "", note, "", *table, "", END])
    PAGE.write_text(before + block + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
