"""Where a command's words go: results to stdout, progress and logs to stderr."""

import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

__all__ = ["Step", "Terminal", "table"]

Step = Callable[..., None]
"""``step(done, total, part=None, seconds_left=None, **figures)``: shows how far a task has come.

``part`` names what is being done right now, where the task has parts.
"""

_WIDE = 160
_BAR = 10  # columns; what is left of 80 is for the figures
_SECONDS_BETWEEN_LINES = 10.0


class Terminal:
    """The two streams of one command.

    Args:
        json: stdout takes one JSON document and nothing else.
        quiet: no progress and no notes on stderr; errors remain.
        verbose: debugging logs, Python's warnings, and tracebacks of bugs.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json, self.quiet, self.verbose = json, quiet, verbose
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)
        self._configure_logging()

    def result(self, record: Mapping[str, Any], *views: RenderableType) -> None:
        """Write a result: as JSON on demand, else as ``views`` for people."""
        if self.json:
            sys.stdout.write(json.dumps(_plain(record), indent=2, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            return
        for view in views:
            self.out.print(view, soft_wrap=isinstance(view, str), markup=False, highlight=False)

    def text(self, text: str) -> None:
        """Write a result that is a text, as it is."""
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()

    def note(self, message: str) -> None:
        """Say what is going on."""
        if not self.quiet:
            self.err.print(message, style="dim", markup=False, highlight=False, soft_wrap=True)

    def next(self, command: str) -> None:
        """Tell which command comes next."""
        self.note(f"next: {command}")

    def error(self, message: str) -> None:
        """Say what went wrong."""
        self.err.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, title: str) -> Iterator[Step]:
        """Show a task's progress: a bar on a terminal, a line now and then elsewhere.

        Args:
            title: what is being done, such as ``evaluate``.

        Yields:
            ``step(done, total, **figures)``, to call as often as one likes.
        """
        if self.quiet:
            yield lambda *_, **__: None
        elif self.err.is_terminal:
            with _bar(self.err) as bar:
                yield _bar_step(bar, title)
        else:
            yield self._line_step(title)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Show what the library says of its own progress, part by part, while the block runs.

        Where there is no terminal, parts that end within a few seconds are not worth a line.
        """
        from dynprune.host.progress import reporting

        with self.progress("prepare") as step:
            began: dict[str, float] = {}

            def listen(part: str, done: int, total: int) -> None:
                if done == 0:
                    began.pop(part, None)
                elapsed = time.monotonic() - began.setdefault(part, time.monotonic())
                if self.err.is_terminal or elapsed > _SECONDS_BETWEEN_LINES:
                    left = elapsed / max(done, 1) * (total - done)
                    step(done, total, part=part, seconds_left=left)

            with reporting(listen):
                yield

    def _line_step(self, title: str) -> Step:
        started = shown = time.monotonic()

        def step(
            done: int,
            total: int,
            *,
            part: str | None = None,
            seconds_left: float | None = None,
            **figures: Any,
        ) -> None:
            nonlocal shown
            now = time.monotonic()
            if done < total and now - shown < _SECONDS_BETWEEN_LINES:
                return
            shown = now
            left = _time_left(done, total, now - started, seconds_left)
            what = f"{part or title} {done}/{total}"
            self.note("  ".join([what, *_words(figures), left]).rstrip())

        return step

    def _configure_logging(self) -> None:
        """Send the library's logs, and on demand Python's warnings, to stderr."""
        logger = logging.getLogger("dynprune")
        level = logging.ERROR if self.quiet else logging.INFO
        logger.setLevel(logging.DEBUG if self.verbose else level)
        logger.handlers = [h for h in logger.handlers if not isinstance(h, _LogHandler)]
        logger.addHandler(_LogHandler(self.err))
        logger.propagate = False
        if not self.verbose:  # which says that a package is missing that nothing here needs
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        if not self.verbose and not sys.warnoptions and "PYTEST_VERSION" not in os.environ:
            warnings.simplefilter("ignore")


class _LogHandler(logging.Handler):
    """Print the library's logs on a console, above its progress bar where there is one."""

    _STYLES: ClassVar[dict[int, str]] = {logging.WARNING: "yellow", logging.ERROR: "red"}

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = self._STYLES.get(record.levelno, "dim")
        text = self.format(record)
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def table(*columns: str, rows: Sequence[Sequence[Any]], title: str | None = None) -> Table:
    """Make a table; columns whose name starts with ``>`` are numbers and stand to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.removeprefix(">"), justify="right" if right else "left")
    for row in rows:
        made.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return made


def _console(*, stderr: bool) -> Console:
    """A console that does not squeeze tables where there is no terminal to fit."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=_WIDE)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=_BAR),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TextColumn("{task.fields[left]}", style="cyan"),
        console=console,
        transient=True,
    )


def _bar_step(bar: Progress, title: str) -> Step:
    task = bar.add_task(title, total=None, figures="", left="")
    started = time.monotonic()

    def step(
        done: int,
        total: int,
        *,
        part: str | None = None,
        seconds_left: float | None = None,
        **figures: Any,
    ) -> None:
        left = _time_left(done, total, time.monotonic() - started, seconds_left)
        shown = " ".join(_words(figures))
        bar.update(
            task, description=part or title, completed=done, total=total, figures=shown, left=left
        )

    return step


def _time_left(done: int, total: int, elapsed: float, known: float | None) -> str:
    """Say how long the rest takes: as the task knows, or as long a step as until now."""
    if done >= total:
        return ""
    seconds = known if known is not None else elapsed / max(done, 1) * (total - done)
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left"


def _words(figures: Mapping[str, Any]) -> list[str]:
    """Write figures short enough that several fit on a line."""
    shown = {name: value for name, value in figures.items() if value is not None}
    return [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in shown.items()
    ]


def _plain(value: Any) -> Any:
    """Replace what JSON has no word for: numbers that are none become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
