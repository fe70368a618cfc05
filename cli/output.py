"""A directory that holds a run: what may be begun there, and what may be removed."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from dynprune.distill.lock import OutputLock
from dynprune.errors import OutputError
from dynprune.files import check_output

__all__ = ["MODEL_FILES", "begin_directory", "check_directory"]

MODEL_FILES = (
    "config.json",
    "dynprune.json",
    "environment.json",
    "model.safetensors",
    "README.md",
    "recipe.yaml",
)
"""What a directory with a model of ours holds, and so what --overwrite may replace."""


def check_directory(
    directory: Path, own: Sequence[str], *, overwrite: bool, resume: bool = False
) -> None:
    """Make sure that a run may write into a directory, before any work is done.

    Args:
        directory: the run's output.
        own: names of the files and directories that such a run writes.
        overwrite: whether an earlier run may be replaced; nothing but a run ever is.
        resume: whether an earlier run goes on.

    Raises:
        OutputError: where it may not.
    """
    if overwrite and directory.is_dir():
        strange = sorted(path.name for path in directory.iterdir() if path.name not in own)
        if strange:
            raise OutputError(
                f"--overwrite: {directory} holds {strange[0]}, which no such run writes; choose "
                "another output, or remove it yourself"
            )
    check_output(directory, overwrite=overwrite or resume)


def begin_directory(directory: Path, own: Sequence[str], *, overwrite: bool) -> None:
    """Make a run's directory, and remove an earlier run from it that has ended.

    Raises:
        OutputError: where another run holds it, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not overwrite:
            return
        with OutputLock(directory):
            for name in own:
                path = directory / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif name != ".lock":
                    path.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write into {directory}: {error.strerror or error}") from error
