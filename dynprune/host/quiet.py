"""Keep what third parties say of their own business away, in this thread and for a block alone.

Warning filters, loggers and the error stream belong to the process. Nothing here changes what
another thread warns of, logs or prints while the block runs, nor what stands after it.
"""

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

__all__ = ["without_logs", "without_stderr", "without_warnings"]


class _Here(type):
    """Make every category a subclass of this class's, in the threads that asked for it."""

    def __subclasscheck__(cls, _: type) -> bool:
        return getattr(_silenced, "depth", 0) > 0


class _AnyHere(Warning, metaclass=_Here):
    """The category of a filter that holds in some threads."""


_silenced = threading.local()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore every warning of this thread.

    `warnings.catch_warnings` would silence the other threads as well, and take back the filters
    that they set meanwhile.
    """
    entry: Any = ("ignore", None, _AnyHere, None, 0)
    _silenced.depth = getattr(_silenced, "depth", 0) + 1
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    filters.insert(0, entry)
    try:
        yield
    finally:
        _silenced.depth -= 1
        for place, found in enumerate(warnings.filters):
            if found is entry:
                del filters[place]
                break


class _OtherThreads(logging.Filter):
    """Let a record pass where another thread logs it, or where it is severe enough."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.thread, self.least = threading.get_ident(), least

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self.thread or record.levelno >= self.least


@contextmanager
def without_logs(*roots: str, least: int = logging.CRITICAL) -> Iterator[None]:
    """Drop what this thread logs to loggers of these names and below, where it is not severe.

    Args:
        roots: names of loggers, such as ``torch.onnx``.
        least: level of a record that passes.
    """
    known = logging.root.manager.loggerDict
    names = {*roots, *(n for root in roots for n in list(known) if n.startswith(f"{root}."))}
    barrier = _OtherThreads(least)
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(barrier)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(barrier)


class _OwnThreadDropped:
    """A stream that drops what some threads write and hands on everything else."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.threads: list[int] = []

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() in self.threads else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


_lock = threading.Lock()


@contextmanager
def without_stderr() -> Iterator[None]:
    """Drop what this thread writes to `sys.stderr`; the stream is the process's own in the end."""
    here = threading.get_ident()
    with _lock:
        found: Any = sys.stderr
        stream = found if isinstance(found, _OwnThreadDropped) else _OwnThreadDropped(found)
        setattr(sys, "stderr", stream)  # noqa: B010
        stream.threads.append(here)
    try:
        yield
    finally:
        with _lock:
            stream.threads.remove(here)
            if not stream.threads and vars(sys)["stderr"] is stream:
                sys.stderr = stream.stream
