"""A directory that holds a run: what may be begun there, and what may be removed."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from dynprune.distill.lock import OutputLock
from dynprune.errors import OutputError
from dynprune.files import check_output, write_file

__all__ = ["MODEL_FILES", "begin_directory", "check_directory"]

MODEL_FILES = (
    "config.json",
    "dynprune.json",
    "environment.json",
    "model.safetensors",
    "preprocessor_config.json",
    "README.md",
    "recipe.yaml",
    # A tokenizer, beside a model that reads text.
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
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
    if directory.is_dir():
        _check_links(directory)
    if overwrite and directory.is_dir():
        strange = sorted(path.name for path in directory.iterdir() if not _is_own(path.name, own))
        if strange:
            raise OutputError(
                f"--overwrite: {directory} holds {strange[0]}, which no such run writes; choose "
                "another output, or remove it yourself"
            )
    check_output(directory, overwrite=overwrite or resume)


def begin_directory(
    directory: Path,
    own: Sequence[str],
    *,
    overwrite: bool,
    resume: bool = False,
    files: Mapping[str, str] | None = None,
) -> None:
    """Make a run's directory, and remove an earlier run from it that has ended.

    Of several runs that begin in one directory at once, one gets it.

    Args:
        directory: the run's output.
        own: names of the files and directories that such a run writes.
        overwrite: whether an earlier run is removed.
        resume: whether an earlier run goes on; its files stay as they are.
        files: texts that the run begins with, by name.

    Raises:
        OutputError: where another run holds it, or it cannot be written.
    """
    try:
        with OutputLock(directory):
            if overwrite:
                _remove(directory, own)
            elif not resume and any(path.name != ".lock" for path in directory.iterdir()):
                raise OutputError(
                    f"another run began in {directory} just now; choose another output"
                )
            for name, text in (files or {}).items():
                if not (resume and (directory / name).is_file()):
                    write_file(directory / name, text)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write into {directory}: {error.strerror or error}") from error


def _remove(directory: Path, own: Sequence[str]) -> None:
    """Remove what a run wrote, but for the lock that is held."""
    for path in list(directory.iterdir()):
        if not _is_own(path.name, own) or path.name == ".lock":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _check_links(directory: Path) -> None:
    """Refuse a directory in which a symbolic link leads out of it: a run would write there."""
    for path in directory.iterdir():
        if path.is_symlink() and not path.resolve().is_relative_to(directory.resolve()):
            raise OutputError(
                f"{path} is a symbolic link to {path.resolve()}, out of {directory}; choose "
                "another output, or remove the link"
            )


def _is_own(name: str, own: Sequence[str]) -> bool:
    """Whether a run writes a file of this name, or leaves it behind when it is killed."""
    return name in own or (name.endswith(".tmp") and name.removesuffix(".tmp").strip(".") in own)
