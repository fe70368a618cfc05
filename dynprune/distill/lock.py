"""One run at a time in an output directory."""

from pathlib import Path
from typing import IO

from dynprune.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: two runs are not kept apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["OutputLock"]


class OutputLock:
    """Holds ``.lock`` of a directory; the system lets go of it when the process ends, however.

    A context manager.

    Args:
        directory: made where it does not exist.

    Raises:
        OutputError: on entering, where another run holds it or it cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / ".lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> "OutputLock":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"cannot write into {self.path.parent}: {error.strerror}; choose another output"
            ) from error
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise OutputError(
                f"another run is writing into {self.path.parent} (it holds {self.path.name}); "
                "wait for it, or choose another output"
            ) from error
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
