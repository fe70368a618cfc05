"""Write a directory so that it is there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from dynprune.errors import DynpruneError, OutputError

__all__ = ["check_output", "write_file", "written_directory"]


def check_output(directory: Path, *, overwrite: bool) -> None:
    """Make sure that a directory may be written, before any work is done for it.

    Raises:
        OutputError: where it exists and is not empty and ``overwrite`` is not given, where it is
            a file, or where its parent cannot be written.
    """
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise OutputError(f"{directory} is not a directory; choose another --output.")
    try:
        if directory.is_dir() and any(directory.iterdir()) and not overwrite:
            raise OutputError(
                f"{directory} exists and is not empty; choose another --output, or give "
                "--overwrite to replace it."
            )
        existing = directory.absolute()
        while not existing.exists():
            existing = existing.parent
        probe = tempfile.mkdtemp(prefix=".dynprune-", dir=existing)
        os.rmdir(probe)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"Cannot write to {directory}: {error.strerror or error}.") from error


@contextmanager
def written_directory(directory: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new directory to fill, which takes ``directory``'s place when the block ends.

    Where the block fails, ``directory`` is as it was and nothing is left beside it.

    Raises:
        OutputError: where ``directory`` may not be written, or writing fails.
    """
    directory = Path(directory)
    check_output(directory, overwrite=overwrite)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise OutputError(f"Cannot write to {directory}: {error.strerror or error}.") from error
    try:
        yield beside
        beside.chmod(0o755)
        for path in [*beside.rglob("*"), beside]:
            _flush(path)
        _swap(beside, directory)
        _flush(directory.parent)
    except OSError as error:
        if isinstance(error, DynpruneError):
            raise
        raise OutputError(f"Writing {directory} failed: {error.strerror or error}.") from error
    except SafetensorError as error:  # how safetensors tells of a full disk
        raise OutputError(f"Writing {directory} failed: {error}. Free some space.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_file(path: Path, text: str) -> None:
    """Write a text file at one stroke: a reader sees the whole of it, or what was there before.

    Raises:
        OutputError: where it cannot be written; what was there stays.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        _flush(beside)
        beside.replace(path)
        _flush(path.parent)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _swap(new: Path, place: Path) -> None:
    """Put ``new`` at ``place``; what was there goes only once the new one stands."""
    if not place.exists():
        new.rename(place)
        return
    old = place.with_name(f".{place.name}-old-{os.getpid()}")
    place.rename(old)
    try:
        new.rename(place)
    except OSError:
        with suppress(OSError):
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Make a file or directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
