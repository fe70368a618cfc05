"""Run commands as processes of their own, without paying for their imports every time.

A child is forked from a parent that has imported everything and computed nothing. It calls the
command's own ``main``, so that it ends as the installed command does: with its exit code, or by a
signal. The parent bounds its memory and its time and reads what it used.
"""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["Child", "Ended", "command", "fork", "import_everything", "wait"]

MEMORY = 1 << 30
"""Bytes that a child may add to its address space."""

SECONDS = 10.0
"""After which a child hangs."""

_CRASHED = 70
_PAUSE = 0.004  # seconds between looks at a child


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: exit code; negative for the signal that ended it.
        out: its stdout.
        err: its stderr.
        seconds: it took.
        megabytes: of memory at its peak, shared libraries among them.
        hung: whether it was ended after its time.
    """

    code: int
    out: str
    err: str
    seconds: float
    megabytes: float
    hung: bool

    @property
    def message(self) -> str:
        """The one error on stderr, or nothing."""
        lines = self.err.splitlines()
        first = [index for index, line in enumerate(lines) if line.startswith("error: ")]
        return "\n".join(lines[first[0] :]) if len(first) == 1 else ""

    def fault(self, codes: Sequence[int] = (0, 2, 3, 4)) -> str | None:
        """Say what is wrong with this end of a user's command; None where it is clean."""
        if self.hung:
            return f"still running after {SECONDS:.0f} s"
        if self.code < 0:
            return f"ended by signal {-self.code}"
        if "Traceback" in self.err:
            return "a traceback"
        if self.code not in codes:
            return f"exit code {self.code}"
        if self.code and not self.message:
            return "not one message"
        if self.code and self.out:
            return "words on stdout beside the error"
        if len(self.message) > 2000:
            return f"a message of {len(self.message)} characters"
        return None


def import_everything() -> None:
    """Import what the commands need; starts no thread that a fork would lose."""
    import accelerate  # noqa: F401
    import torch
    import torch.export
    from dynprune.cli import main  # noqa: F401
    from transformers import AutoConfig, SegformerForSemanticSegmentation  # noqa: F401

    import dynprune.distill.trainer
    import dynprune.measure.macs
    import dynprune.models.storage
    import dynprune.pipeline
    import dynprune.tasks.evaluate
    import dynprune.tasks.predict  # noqa: F401

    torch.set_num_threads(1)


def command(
    arguments: Sequence[str],
    *,
    seconds: float = SECONDS,
    memory: int | None = MEMORY,
    before: Callable[[], None] | None = None,
) -> Ended:
    """Run one command to its end; ``before`` runs in the child, ahead of the command."""
    with TemporaryDirectory() as streams:
        return wait(fork(arguments, Path(streams), memory=memory, before=before), seconds=seconds)


@dataclass(frozen=True)
class Child:
    """A running command."""

    pid: int
    streams: Path
    began: float


def fork(
    arguments: Sequence[str],
    streams: Path,
    *,
    memory: int | None = MEMORY,
    before: Callable[[], None] | None = None,
) -> Child:
    """Begin a command in a process of its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    began, pid = time.monotonic(), os.fork()
    if pid:
        return Child(pid, streams, began)
    code = _CRASHED
    try:
        os.setpgid(0, 0)
        _redirect(streams)
        if memory is not None:
            most = (_status("VmSize") << 10) + memory
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        if before is not None:
            before()
        code = _main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # never back into the parent's code


def wait(child: Child, *, seconds: float = SECONDS, kill_after: float | None = None) -> Ended:
    """Wait for the end of a command, or bring it about by SIGKILL after ``kill_after`` seconds."""
    patience = seconds if kill_after is None else kill_after
    passed, last, hung = 0.0, child.began, False
    while True:
        ended, status, usage = os.wait4(child.pid, os.WNOHANG)
        if ended:
            break
        now = time.monotonic()
        if not _is_stopped(child.pid):  # by SIGSTOP, as whoever measures beside us may do
            passed += min(now - last, 1.0)
        last = now
        if passed > patience:
            os.killpg(child.pid, signal.SIGKILL)
            hung = kill_after is None
            _, status, usage = os.wait4(child.pid, 0)
            break
        time.sleep(_PAUSE)
    return Ended(
        code=os.waitstatus_to_exitcode(status),
        out=(child.streams / "out").read_text(errors="replace"),
        err=(child.streams / "err").read_text(errors="replace"),
        seconds=passed + min(time.monotonic() - last, 1.0),
        megabytes=usage.ru_maxrss / 1024,
        hung=hung,
    )


def _is_stopped(pid: int) -> bool:
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return stat.rpartition(")")[2].split()[0] == "T"
    return False


def _main(arguments: Sequence[str]) -> int:
    from dynprune.cli.main import main

    sys.argv = ["dynprune", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def _redirect(streams: Path) -> None:
    for name, number in (("out", 1), ("err", 2)):
        handle = os.open(streams / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)


def _status(key: str) -> int:
    """Read a figure of this process in kilobytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{key}:"))
