"""The course of a run: where it stands, and what is reported, validated and saved after a step."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dynprune.distill.batches import BatchSource, batches
from dynprune.distill.checkpoint import Checkpoint, CheckpointStore
from dynprune.distill.interrupt import Interrupted, StopRequested, StopSignal
from dynprune.distill.metrics_log import MetricsLog, Record
from dynprune.distill.step import Stepper, StepResult
from dynprune.errors import UsageError

__all__ = ["Run", "Validate"]

_LOG = logging.getLogger(__name__)

Validate = Callable[[nn.Module], Mapping[str, float]]
"""From the student, in eval mode, to its scores."""


class Run:
    """A run in progress.

    Args:
        stepper: carries out steps.
        accelerator: of the processes.
        validate: from the student to scores; only the first process calls it.
        store: of checkpoints; only the first process writes.
        facts: the fingerprint.

    Attributes:
        step: optimizer steps done.
    """

    def __init__(
        self,
        stepper: Stepper,
        accelerator: Accelerator,
        *,
        validate: Validate | None,
        store: CheckpointStore | None,
        facts: Mapping[str, Any],
    ) -> None:
        self.stepper, self.accelerator = stepper, accelerator
        self.reporting = stepper.plan.reporting
        self._validate = validate if accelerator.is_main_process else None
        self._store = store if accelerator.is_main_process else None
        self._facts = facts
        self.step = 0
        self._best: dict[str, Any] | None = None
        self._pending: dict[str, Any] | None = None
        self._last: dict[str, Any] | None = None
        self._path: Path | None = None
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        self._earlier_seconds = 0.0
        self._began_step, self._began = 0, time.perf_counter()

    def begin(self, step: int, saved: Checkpoint | None) -> None:
        """Take up the state of a checkpoint, or begin at ``step``."""
        self.step = step
        if saved is not None:
            self.stepper.load(saved.tensors)
            self.step, self._path = saved.step, saved.path
            state = saved.state
            self._best, self._pending = state["best"], state["pending"]
            self._last = state.get("record")
            self._earlier_seconds = float(state["seconds"])
            if state["processes"] != self.accelerator.num_processes:
                _LOG.warning(
                    "resuming a run of %d processes with %d: dropout will differ",
                    state["processes"],
                    self.accelerator.num_processes,
                )
            if self._best is not None and self._store is not None:
                self._store.mark_best(**self._best)
        self.stepper.set_progress(self.step)
        self._began_step, self._began = self.step, time.perf_counter()

    def until(
        self, last: int, source: BatchSource, journal: MetricsLog | None, stop: StopSignal
    ) -> Iterator[Record]:
        """Carry out the steps up to ``last`` and yield records.

        Raises:
            Interrupted: after SIGINT or SIGTERM, once the state is saved.
            UsageError: if the loss or the gradient is no longer finite.
        """
        if self._last is not None and journal is not None:
            # The run may have been killed between its checkpoint and its record.
            journal.write_if_missing(Record(**self._last))
        if self._pending is not None:
            # The run was stopped while it validated: that comes first.
            record = self._finish_record(Record(**self._pending), last, stop)
            yield self._written(record, journal)
            self._leave_if(self._agreed(stop))
        feed = batches(
            source,
            range(self.step, last),
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            workers=self.stepper.execution.workers,
            pin=self.accelerator.device.type == "cuda",
        )
        while self.step < last:
            try:
                batch = next(feed)
            except RuntimeError:
                # A signal to the whole process group ends the loader's workers too.
                if not stop.requested:
                    raise
                self._leave_if(self._agreed(stop))
                raise
            result = self.stepper(self.step, batch)
            self.step += 1
            self._add(result)
            self.stepper.set_progress(self.step)
            stops = self._agreed(stop)
            if not stops and self._is_reported(last):
                record = self._finish_record(self._record(result), last, stop)
                yield self._written(record, journal)
                stops = self._agreed(stop)
            elif not stops and self._due(self.reporting.save_every, last):
                self._save()
            self._leave_if(stops)
        if self.stepper.average is not None:
            self.stepper.average.put_into_model()
        self.stepper.student.eval()

    def _finish_record(self, record: Record, last: int, stop: StopSignal) -> Record:
        """Validate and save at a record's step where either is due."""
        self._pending = None
        improved = False
        if self._due(self.reporting.validate_every, last):
            try:
                scores = self._scores(stop)
            except StopRequested:
                self._pending = record.to_json()
                return record
            record = replace(record, validation=scores)
            improved = self._improves(scores)
        if improved or self._due(self.reporting.save_every, last):
            if self._store is not None:
                record = replace(record, checkpoint=self._store.path(self.step).name)
            self._last = record.to_json()
            self._save()
            if improved and self._store is not None and self._best is not None:
                self._store.mark_best(**self._best)
        return record

    def _scores(self, stop: StopSignal) -> Mapping[str, float] | None:
        if self._validate is None:
            return None
        with stop.breaking(), self.stepper.averaged():
            self.stepper.student.eval()
            return dict(self._validate(self.stepper.student))

    def _improves(self, scores: Mapping[str, float] | None) -> bool:
        """Remember the scores if they are the best so far."""
        metric = self.reporting.metric
        value = None if scores is None else scores.get(metric)
        if value is None or not math.isfinite(value):
            return False
        if self._best is not None and value <= self._best["value"]:
            return False
        self._best = {"step": self.step, "metric": metric, "value": float(value)}
        return True

    def _record(self, result: StepResult) -> Record:
        """Make the record of the steps since the last one; every process takes part."""
        names = sorted(self._sums)
        means = torch.stack([self._sums[name].float() for name in names]) / self._summed
        values = dict(zip(names, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        self._require_finite(values)
        self._sums, self._summed = {}, 0
        elapsed = time.perf_counter() - self._began
        per_step = elapsed / max(1, self.step - self._began_step)
        return Record(
            step=self.step,
            steps=self.stepper.steps,
            stage=self.stepper.plan.stage_at(self.step - 1)[0].name,
            loss=values["loss"],
            parts={n[5:]: v for n, v in values.items() if n.startswith("part/")},
            lr=result.lr,
            grad_norm=float(result.grad_norm),
            prune_ratio=result.prune_ratio,
            kept_share=result.kept_share,
            seconds=round(self._earlier_seconds + elapsed, 3),
            eta_seconds=round(per_step * (self.stepper.steps - self.step), 3),
        )

    def _add(self, result: StepResult) -> None:
        found = {"loss": result.loss, "grad_norm": result.grad_norm}
        found |= {f"part/{name}": value for name, value in result.parts.items()}
        for name, value in found.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._summed += 1

    def _require_finite(self, values: Mapping[str, float]) -> None:
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise UsageError(
                f"training diverged: {', '.join(broken)} is not finite at step {self.step}. Lower "
                "the learning rate, lengthen its warm-up or clip the gradient; the last "
                f"checkpoint is {self._path or 'none'}"
            )

    def _save(self) -> None:
        """Write a checkpoint of this step, on the first process, where there is a store."""
        self._require_finite({name: float(value) for name, value in self._sums.items()})
        if self._store is None:
            return
        seconds = self._earlier_seconds + time.perf_counter() - self._began
        state = {
            "stage": self.stepper.plan.stage_at(max(0, self.step - 1))[0].name,
            "fingerprint": self._facts,
            "processes": self.accelerator.num_processes,
            "seconds": round(seconds, 3),
            "best": self._best,
            "pending": self._pending,
            "record": self._last if self._last and self._last["step"] == self.step else None,
        }
        self._path = self._store.save(Checkpoint(self.step, self.stepper.tensors(), state))

    def _leave_if(self, stops: bool) -> None:
        if stops:
            self._save()
            raise Interrupted(self._path, self.step)

    def _agreed(self, stop: StopSignal) -> bool:
        """Whether any process was asked to stop; all of them then stop at the same step."""
        if self.accelerator.num_processes == 1:
            return stop.requested
        flag = torch.tensor(float(stop.requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _is_reported(self, last: int) -> bool:
        every = (self.reporting.log_every, self.reporting.validate_every)
        _, start = self.stepper.plan.stage_at(self.step)
        return self.step in (self._began_step + 1, start) or any(self._due(n, last) for n in every)

    def _due(self, every: int | None, last: int) -> bool:
        return self.step == last or (every is not None and self.step % every == 0)

    @staticmethod
    def _written(record: Record, journal: MetricsLog | None) -> Record:
        if journal is not None:
            journal.write(record)
        return record
