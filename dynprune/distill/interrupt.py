"""SIGINT and SIGTERM as a wish that the training loop grants when a step is complete."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "StopRequested", "StopSignal"]


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal after its state was saved.

    Attributes:
        checkpoint: where the state is, or None for a run without an output directory.
        step: optimizer steps done.
    """

    def __init__(self, checkpoint: Path | None, step: int) -> None:
        where = "nothing was saved" if checkpoint is None else f"resume from {checkpoint}"
        super().__init__(f"stopped after step {step}; {where}")
        self.checkpoint = checkpoint
        self.step = step


class StopRequested(BaseException):
    """Raised inside :meth:`StopSignal.breaking` to leave work that can be repeated."""


class StopSignal:
    """Remembers that SIGINT or SIGTERM came; a second SIGINT interrupts at once.

    A context manager. Outside the main thread, where Python allows no handlers, it does nothing.

    Attributes:
        requested: whether a signal came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._breaks = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if self._breaks:
            raise StopRequested

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """Let a signal end the enclosed work at once, by :class:`StopRequested`."""
        self._breaks = True
        try:
            yield
        finally:
            self._breaks = False
