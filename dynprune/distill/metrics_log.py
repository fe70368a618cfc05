"""The record of a run: one JSON line per report in ``metrics.jsonl``, and TensorBoard's copy."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from dynprune.errors import OutputError, UsageError

__all__ = ["MetricsLog", "Record", "last_scores"]


@dataclass(frozen=True)
class Record:
    """The state of a run at one step.

    Attributes:
        step: optimizer steps done, over all stages.
        steps: of the whole run.
        stage: that the step belonged to.
        loss: mean over the steps since the last record.
        parts: the loss's terms, unweighted, likewise.
        lr: learning rate of the last step (of parameters that are not a gate's).
        grad_norm: of the last step, before clipping.
        prune_ratio: mean over gates, of the last step.
        kept_share: share of gated neurons that were kept, after rounding.
        seconds: since the run began, with those before it was resumed.
        eta_seconds: estimate of what is left.
        validation: what the validation gave, or None where there was none at this step.
        checkpoint: name of the checkpoint written at this step, or None.
    """

    step: int
    steps: int
    stage: str
    loss: float
    parts: Mapping[str, float]
    lr: float
    grad_norm: float
    prune_ratio: float
    kept_share: float
    seconds: float
    eta_seconds: float
    validation: Mapping[str, float] | None = None
    checkpoint: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


class MetricsLog:
    """Appends records to ``metrics.jsonl`` of a directory, and to TensorBoard if asked.

    A context manager.

    Args:
        directory: of the run.
        after_step: records of later steps are dropped from an earlier journal; they will be
            written again.
        tensorboard: whether to write ``tensorboard/`` too.

    Raises:
        OutputError: if the file cannot be written.
        UsageError: if TensorBoard is asked for and not installed.
    """

    def __init__(self, directory: Path, *, after_step: int = 0, tensorboard: bool = False) -> None:
        self.path = directory / "metrics.jsonl"
        self._board = _board(directory / "tensorboard", after_step) if tensorboard else None
        try:
            kept = list(_records_until(self.path, after_step)) if self.path.exists() else []
            self._rewrite(kept)
            self._last = json.loads(kept[-1])["step"] if kept else 0
            self._file: IO[str] = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, record: Record) -> None:
        """Append a record; it is on its way to the disk when this returns."""
        self._file.write(json.dumps(record.to_json()) + "\n")
        self._file.flush()
        self._last = record.step
        if self._board is not None:
            for key, value in _scalars(record):
                self._board.add_scalar(key, value, record.step)
            self._board.flush()

    def write_if_missing(self, record: Record) -> None:
        """Append a record unless the journal goes as far already."""
        if record.step > self._last:
            self.write(record)

    def _rewrite(self, lines: list[str]) -> None:
        beside = self.path.with_name(self.path.name + ".tmp")
        beside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        os.replace(beside, self.path)


def last_scores(directory: Path) -> tuple[Mapping[str, float] | None, int | None]:
    """Read the scores of the last validation of a run, and its last step; None where unknown."""
    scores, step = None, None
    try:
        lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        for record in map(json.loads, lines):
            scores, step = record["validation"] or scores, record["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
    return scores, step


def _records_until(path: Path, step: int) -> Iterator[str]:
    """Yield the whole lines of records up to ``step``; the rest of a torn line is dropped."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and 0 < record.get("step", 0) <= step:
            yield line


def _scalars(record: Record) -> Iterator[tuple[str, float]]:
    yield "loss/total", record.loss
    for name, value in record.parts.items():
        yield f"loss/{name}", value
    for name in ("lr", "grad_norm", "prune_ratio", "kept_share"):
        yield f"training/{name}", getattr(record, name)
    for name, value in (record.validation or {}).items():
        if isinstance(value, (int, float)):
            yield f"validation/{name}", value


def _board(directory: Path, after_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "TensorBoard was asked for and is not installed: pip install 'dynprune[tensorboard]'"
        ) from error
    return SummaryWriter(str(directory), purge_step=after_step + 1 if after_step else None)
