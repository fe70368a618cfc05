"""Hand damaged files to commands, one process each, and look at how they end."""

import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.reliability.mutations import MUTATORS, mutations
from benchmarks.reliability.process import Ended, command
from benchmarks.reliability.section import Section
from benchmarks.reliability.world import World

__all__ = ["damaged_files"]

_TRACED = 25  # every so many recipes go through a command that traces the model


def damaged_files(
    world: World, work: Path, count: int, *, run: Callable[..., Ended] = command, seed: int = 0
) -> list[Section]:
    """Attack every kind of file ``count`` times.

    Args:
        world: the whole files.
        work: an empty directory.
        count: of mutations a kind.
        run: how a command is run.
        seed: of the mutations.
    """
    return [_attack(name, world, work / name, count, run, seed) for name in MUTATORS]


def _attack(
    name: str, world: World, work: Path, count: int, run: Callable[..., Ended], seed: int
) -> Section:
    section = Section(f"damaged {name}")
    original = world.picture if name == "picture" else world.gated / name
    shutil.copytree(world.gated, work)
    target = work / ("picture.png" if name == "picture" else name)
    for index, damaged in enumerate(mutations(name, original.read_bytes(), count, seed)):
        target.write_bytes(damaged)
        ended = run(_command(name, world, work, target, index))
        fault = ended.fault()
        section.add(f"exit {ended.code}", fault and f"mutation {index}: {fault}")
        section.most("longest seconds", ended.seconds)
        section.most("most MB", ended.megabytes)
    return section


def _command(name: str, world: World, work: Path, target: Path, index: int) -> list[str]:
    """Return the command that reads the damaged file."""
    device = ["--device", "cpu"]
    if name == "recipe.yaml" and index % _TRACED == 0:
        return ["inspect", str(world.dense), "--recipe", str(target), *device]
    if name == "recipe.yaml" and index % 2:
        return ["recipe", "validate", str(target)]
    model, picture = (world.gated, target) if name == "picture" else (work, world.picture)
    seen = str(work.with_name(f"{work.name}-seen"))
    return ["predict", str(model), str(picture), "-o", seen, "--overwrite", *device]
