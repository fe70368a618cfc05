"""Write a file under its name only once it is known to be good."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynprune.errors import DynpruneError, OutputError

__all__ = ["atomic_file"]


@contextmanager
def atomic_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path to write to, whose file and its companions move to ``path`` when the block ends.

    Where the block fails, nothing is left and what was at ``path`` stays.

    Args:
        path: the file.
        overwrite: whether it may be there already.

    Raises:
        OutputError: it is there already, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; choose another --output or give --overwrite.")
    if path.is_dir():
        raise OutputError(f"{path} is a directory; give a file's name as --output.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise OutputError(f"Cannot write to {path}: {error.strerror or error}.") from error
    try:
        yield beside / path.name
        # The file itself comes last: who sees it, sees its companions too.
        for made in sorted(beside.iterdir(), key=lambda made: made.name == path.name):
            with made.open("rb") as file:
                os.fsync(file.fileno())
            made.replace(path.parent / made.name)
    except OSError as error:
        if isinstance(error, DynpruneError):
            raise
        raise OutputError(f"Writing {path} failed: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
