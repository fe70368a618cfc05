"""Take the disk away while something is written, and look at what stands afterwards."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.reliability.kills import differs_from, run_whole
from benchmarks.reliability.process import Ended, command
from benchmarks.reliability.section import Section
from benchmarks.reliability.world import World

__all__ = ["full_disk", "read_only", "small_files"]

_SECONDS = 120.0
_ROOM = (0, 4, 16, 24, 40, 64, 128)  # KiB left; a whole model takes about 60
_ROOM_OF_A_RUN = (8, 40, 100, 140, 180, 220)  # KiB; a run with its checkpoints takes more
_FILE = (2048, 4096, 16_384)  # bytes; what a command says goes into a file too


def full_disk(world: World, work: Path, rooms: Sequence[int] = _ROOM) -> Section:
    """Overwrite an earlier result in a small file system with ever less room."""
    section = Section("full disk while overwriting (tmpfs)")
    if not _can_mount(work):
        section.skipped = "mounting a tmpfs needs root"
        return section
    for room in rooms:
        for name in ("apply", "predict"):
            with _mounted(work / "disk", "size=4m") as disk:
                before, arguments = _earlier(world, disk / "out", name)
                _fill(disk, room)
                ended = command(arguments, seconds=_SECONDS)
                _judge(section, f"{name}, {room} KiB left", ended, disk / "out", before)
    return section


def full_disk_in_a_run(world: World, work: Path, rooms: Sequence[int] = _ROOM_OF_A_RUN) -> Section:
    """Let the disk fill up during a run; then make room and go on."""
    section = Section("full disk during distillation (tmpfs)")
    if not _can_mount(work):
        section.skipped = "mounting a tmpfs needs root"
        return section
    whole, _ = run_whole(world, work / "whole")
    for room in rooms:
        with _mounted(work / "disk", "size=4m") as disk:
            _fill(disk, room)
            ended = command(world.distill(disk / "run"), seconds=_SECONDS)
            (disk / "ballast").unlink()
            fault = ended.fault((0, 4)) or differs_from(whole, world, disk / "run")
            section.add(f"exit {ended.code}", fault and f"{room} KiB: {fault}")
    return section


def small_files(world: World, work: Path, sizes: Sequence[int] = _FILE) -> Section:
    """Overwrite where the system lets no file grow beyond a few KiB (RLIMIT_FSIZE)."""
    section = Section("files that cannot grow (RLIMIT_FSIZE)")

    def limit(most: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    for most in sizes:
        for name in ("apply", "predict"):
            output = work / f"{name}-{most}"
            before, arguments = _earlier(world, output, name)
            ended = command(arguments, seconds=_SECONDS, before=limit(most))
            _judge(section, f"{name}, {most} bytes a file", ended, output, before)
    return section


def read_only(world: World, work: Path) -> Section:
    """Write into a directory that may not be written."""
    section = Section("read-only directory")
    if os.geteuid() == 0 and not _can_mount(work):
        section.skipped = "root writes anywhere, and may not mount here"
        return section
    for name in ("apply", "predict", "distill"):
        with _read_only_after(work / name) as (parent, close):
            output = parent / "out"
            before, arguments = _earlier(world, output, name)
            close()
            ended = command(arguments, seconds=_SECONDS)
            _judge(section, name, ended, output, before, codes=(4,))
    return section


@contextmanager
def _read_only_after(place: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yield a directory and what makes it read-only: by its mode, or for root by its mount."""
    if os.geteuid() == 0:
        with _mounted(place, "size=4m") as disk:
            yield disk, lambda: _mount("-o", "remount,ro", disk)
        return
    place.mkdir(parents=True)

    def close() -> None:
        for path in [*place.rglob("*"), place]:
            path.chmod(0o500 if path.is_dir() else 0o400)

    yield place, close
    for path in [place, *place.rglob("*")]:
        path.chmod(0o700)


def _can_mount(work: Path) -> bool:
    """Whether this process may mount a file system."""
    try:
        with _mounted(work / "probe", "size=4k"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def _mounted(place: Path, options: str) -> Iterator[Path]:
    """Yield a file system in memory that is gone afterwards."""
    place.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", options, "tmpfs", place)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, capture_output=True)


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def _earlier(world: World, output: Path, name: str) -> tuple[dict[str, bytes], list[str]]:
    """Put an earlier result in place; give its files, and the command that is to replace it."""
    if name == "predict":
        output.mkdir(parents=True)
        (output / f"{world.picture.stem}.png").write_bytes(b"an earlier picture")
        arguments = ["predict", str(world.gated), str(world.picture), "-o", str(output)]
        return _files(output), [*arguments, "--overwrite", "--device", "cpu"]
    shutil.copytree(world.gated, output)
    write = world.apply if name == "apply" else world.distill
    return _files(output), write(output, "--overwrite")


def _files(directory: Path) -> dict[str, bytes]:
    if not directory.is_dir():
        return {}
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def _fill(disk: Path, room: int) -> None:
    """Leave ``room`` KiB of a file system."""
    free = shutil.disk_usage(disk).free - room * 1024
    (disk / "ballast").write_bytes(b"\0" * max(0, free))


def _judge(
    section: Section,
    what: str,
    ended: Ended,
    output: Path,
    before: dict[str, bytes],
    codes: Sequence[int] = (0, 4),
) -> None:
    """An end is right where the command succeeded, or said why not and left what was there."""
    fault, after = ended.fault(codes), _files(output)
    if fault is None and ended.code and any(after.get(name) != before[name] for name in before):
        fault = "the earlier files are gone or changed"
    beside = [path.name for path in output.parent.iterdir() if path.name not in _EXPECTED]
    if fault is None and beside:
        fault = f"{beside[0]} is left beside the output"
    section.add(f"exit {ended.code}", fault and f"{what}: {fault}: {ended.err[-200:]}")


_EXPECTED = (
    "out",
    "ballast",
    *(f"{name}-{most}" for name in ("apply", "predict") for most in _FILE),
)
