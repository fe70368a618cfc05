"""Begin runs in one directory at once: one gets it, the others are refused, and nothing mixes."""

import os
import signal
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.reliability.kills import differs_from, run_whole
from benchmarks.reliability.process import Ended, command, fork, wait
from benchmarks.reliability.section import Section
from benchmarks.reliability.world import World

__all__ = ["rivals"]

_SECONDS = 120.0


def rivals(world: World, work: Path, count: int = 5) -> Section:
    """Begin two runs at once ``count`` times, then a second one beside a run in progress."""
    section = Section("two runs into one output directory")
    whole, _ = run_whole(world, work / "whole")
    for index in range(count):
        output = work / f"run-{index}"
        first, second = _at_once(world, output)
        fault = _one_won(first, second) or differs_from(whole, world, output)
        section.add("one of two refused" if fault is None else "wrong", fault)
    for flag in ("", "--resume", "--overwrite"):
        fault = _beside_a_run(world, work / f"held{flag}", flag)
        section.add("refused beside a run" if fault is None else "wrong", fault)
    return section


def _at_once(world: World, output: Path) -> tuple[Ended, Ended]:
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        children = [
            fork(world.distill(output, "--seed", "0"), Path(streams)) for streams in (one, other)
        ]
        first, second = (wait(child, seconds=_SECONDS) for child in children)
        return first, second


def _one_won(first: Ended, second: Ended) -> str | None:
    codes = sorted((first.code, second.code))
    if codes != [0, 4]:
        return f"exit codes {codes}: {first.err[-200:]} {second.err[-200:]}"
    return next((fault for ended in (first, second) if (fault := ended.fault((0, 4)))), None)


def _beside_a_run(world: World, output: Path, flag: str) -> str | None:
    """Hold a run in its middle, and begin another one in its directory."""
    with TemporaryDirectory() as streams:
        child = fork(world.distill(output), Path(streams))
        while not list(output.glob("checkpoints/step-*")):
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGSTOP)
        before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
        rival = command(world.distill(output, *([flag] if flag else [])), seconds=_SECONDS)
        after = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
        os.kill(child.pid, signal.SIGCONT)
        ended = wait(child, seconds=_SECONDS)
    if fault := rival.fault((4,)):
        return f"beside a run {flag}: {fault}: {rival.err[-200:]}"
    if {path.name for path in after} - {path.name for path in before}:
        return f"beside a run {flag}: the refused run wrote something"
    changed = [path.name for path in before if before[path] != after.get(path)]
    if changed and changed != [".lock"]:
        return f"beside a run {flag}: the refused run changed {changed[0]}"
    return f"the run that was there first: {ended.err[-200:]}" if ended.code else None
