"""Kill a distillation run at random moments, go on, and compare what comes out."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file

from benchmarks.reliability.process import Child, Ended, command, fork, wait
from benchmarks.reliability.section import Section
from benchmarks.reliability.world import World
from dynprune.distill.checkpoint import CheckpointStore
from dynprune.errors import InputError

__all__ = ["differs_from", "killed_runs", "run_whole"]

_SECONDS = 300.0


def killed_runs(world: World, work: Path, count: int, *, seed: int = 0) -> Section:
    """Kill ``count`` runs, each at a moment of its own; then resume it to its end.

    A run that ends before its moment comes is run again, with another one.

    Every checkpoint that stands after the kill must be whole, resuming must succeed, and weights
    and records must be those of the run that was never killed, bit for bit.
    """
    section = Section("killed distillation runs (SIGKILL)")
    whole, seconds = run_whole(world, work / "whole")
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    training = float(json.loads(lines[-1])["seconds"])
    section.figures["seconds of a whole run"] = round(seconds, 2)
    chance = random.Random(seed)
    index = 0
    while index < count:
        output = work / f"killed-{index}"
        with TemporaryDirectory() as streams:
            child = fork(world.distill(output), Path(streams))
            moment = chance.uniform(0, seconds)
            while index % 2 and not _has_begun(output, child):
                time.sleep(0.002)  # every other run is killed while it trains
                moment = time.monotonic() - child.began + chance.uniform(0, training)
            ended = wait(child, kill_after=moment)
        if ended.code >= 0:  # it was faster than that
            shutil.rmtree(output)
            continue
        where = _progress(output)
        fault = differs_from(whole, world, output)
        section.add(f"killed {where}", fault and f"kill {index}: {fault}")
        index += 1
    return section


def run_whole(world: World, output: Path) -> tuple[Path, float]:
    """Carry out the run that nobody disturbs; give its directory and its seconds."""
    ended = command(world.distill(output), seconds=_SECONDS)
    if ended.code:
        raise RuntimeError(f"the run that nobody disturbs failed: {ended.err}")
    return output, ended.seconds


def differs_from(
    whole: Path, world: World, output: Path, *, run: Callable[..., Ended] = command
) -> str | None:
    """Go on with a run that was ended, and compare it with the whole one.

    Returns:
        What is not as it should be: a checkpoint that is not whole, a run that cannot be resumed,
        other weights, other records, a file that is left over; or None.
    """
    store = CheckpointStore(output / "checkpoints")
    for step in store.steps():
        try:
            store.read(output / "checkpoints" / f"step-{step}")
        except InputError as error:
            return str(error)
    flags = ["--resume"] if output.exists() else []
    resumed = run(world.distill(output, *flags), seconds=_SECONDS)
    if resumed.code:
        return f"resuming ended with {resumed.code}: {resumed.err[-300:]}"
    weights, found = (load_file(path / "model.safetensors") for path in (whole, output))
    if found.keys() != weights.keys():
        return "other tensors"
    differing = [name for name in weights if not weights[name].equal(found[name])]
    if differing:
        return f"{len(differing)} tensors differ, {differing[0]} among them"
    if _records(output) != _records(whole):
        return "metrics.jsonl tells of another run"
    left = [path.name for path in output.iterdir() if path.name.endswith(".tmp")]
    return f"{left[0]} is left over" if left else None


def _has_begun(output: Path, child: Child) -> bool:
    """Whether a run trains, or will no more."""
    if (output / "metrics.jsonl").exists():
        return True
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _progress(output: Path) -> str:
    """Say how far a killed run had come."""
    if not output.exists():
        return "before its directory stood"
    if (output / "model.safetensors").exists():
        return "while it wrote the model"
    steps = CheckpointStore(output / "checkpoints").steps()
    return "while it trained" if steps else "before its first checkpoint"


def _records(output: Path) -> list[dict]:
    """Read what does not depend on the clock, of a run that may have been reported twice."""
    timed = ("seconds", "eta_seconds", "checkpoint", "loss", "parts")
    lines = (output / "metrics.jsonl").read_text().splitlines()
    found = {record["step"]: record for record in map(json.loads, lines)}
    return [
        {key: value for key, value in found[step].items() if key not in timed}
        for step in sorted(found)
    ]
