"""Train a student by stages, one after the other, from a checkpoint where there is one."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from dynprune.distill import fingerprint as fingerprints
from dynprune.distill.batches import BatchSource
from dynprune.distill.checkpoint import CheckpointStore
from dynprune.distill.interrupt import StopSignal
from dynprune.distill.journal import Journal, Record
from dynprune.distill.lock import OutputLock
from dynprune.distill.optimizer import AdamW
from dynprune.distill.processes import join_processes
from dynprune.distill.run import Reporting, Run, Validate
from dynprune.distill.schedule import LearningRate, PruneSchedule
from dynprune.distill.stage import Penalty, StagePlan
from dynprune.distill.step import Execution, Stepper
from dynprune.errors import OutputError, UsageError

__all__ = ["train"]

_LOG = logging.getLogger(__name__)


def train(
    student: nn.Module,
    teacher: nn.Module | None,
    batch: BatchSource,
    *,
    stages: Sequence[StagePlan],
    optimizer: AdamW | None = None,
    learning_rate: LearningRate | None = None,
    sparsity: PruneSchedule | None = None,
    penalties: Sequence[Penalty] = (),
    execution: Execution | None = None,
    reporting: Reporting | None = None,
    validate: Validate | None = None,
    output: Path | None = None,
    resume: bool = False,
    only: str | None = None,
    ignore_index: int = 255,
    class_weights: Sequence[float] | None = None,
    seed: int = 0,
    fingerprint: Mapping[str, Any] | None = None,
) -> Iterator[Record]:
    """Train a student, in place, and yield a record every few steps.

    Stages follow each other; the prune ratio and (unless it is set per stage) the learning rate
    move over all of them. At the end the student is in eval mode, prunes by its final ratio and
    holds the moving average of its weights, where one was asked for.

    On several processes (``accelerate launch``) each takes its share of every batch. All yield
    records; the first one alone validates and writes.

    Args:
        student: the model that learns; parameters that require no gradient stay as they are.
        teacher: frozen model that it learns from; None where no loss needs one.
        batch: from the step to the batch; pure, see :data:`~dynprune.distill.batches.BatchSource`.
        stages: in sequence.
        optimizer: settings of AdamW.
        learning_rate: its schedule.
        sparsity: how the prune ratio grows.
        penalties: terms of every stage.
        execution: how a step is carried out.
        reporting: how often the run reports, validates and saves.
        validate: from the student to scores.
        output: directory of ``metrics.jsonl`` and ``checkpoints/``; None writes nothing.
        resume: continue from the latest whole checkpoint in ``output``; begin where there is none.
        only: name of the one stage to run, at its place in the schedules.
        ignore_index: label value that counts for nothing.
        class_weights: a weight a class for ``ce``.
        seed: of dropout and stochastic depth. Python's, NumPy's and torch's random states are
            set by it at every step.
        fingerprint: JSON-able facts besides the arguments above that must not change on resume,
            such as the recipe and a description of the data.

    Yields:
        A record every ``log_every`` steps, at every validation and at the end of every stage.

    Raises:
        UsageError: if the arguments do not fit together, a checkpoint is of another run, or the
            loss is no longer finite.
        OutputError: if ``output`` cannot be written, is in use, or holds a run and ``resume`` is
            not set.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.

    Source: DynaSegFormer, arXiv 2111.09499, section 3 (two-stage distillation).
    """
    optimizer, learning_rate = optimizer or AdamW(), learning_rate or LearningRate()
    sparsity, execution = sparsity or PruneSchedule(), execution or Execution()
    reporting = reporting or Reporting()
    first, last = _span(stages, only)
    _check_teacher(stages, teacher)
    accelerator = join_processes(execution.device)
    with ExitStack() as stack:
        store = None
        if output is not None:
            if accelerator.is_main_process:
                stack.enter_context(OutputLock(output))
            store = CheckpointStore(output / "checkpoints", keep=reporting.keep_checkpoints)
            if not resume and store.steps():
                raise OutputError(
                    f"{output} holds checkpoints of an earlier run: resume it, or choose another "
                    "output"
                )
        facts = fingerprints.canonical(
            {
                **(fingerprint or {}),
                "stages": [asdict(stage) for stage in stages],
                "optimizer": asdict(optimizer),
                "learning_rate": asdict(learning_rate),
                "sparsity": asdict(sparsity),
                "penalties": [asdict(penalty) for penalty in penalties],
                "execution": execution.deciding,
                "labels": {"ignore_index": ignore_index, "class_weights": class_weights},
                "seed": seed,
                "student": fingerprints.structure(student),
                "teacher": None if teacher is None else fingerprints.weights_digest(teacher),
            }
        )
        saved = store.latest() if store is not None and resume else None
        if saved is not None:
            fingerprints.check(saved.state["fingerprint"], facts, f"checkpoint {saved.path}")
            if saved.step < first:
                raise UsageError(
                    f"stage {only!r} begins at step {first}, but the checkpoint in {output} is at "
                    f"step {saved.step}; train the stages before it first"
                )
        stepper = Stepper(
            student,
            teacher,
            accelerator,
            stages=stages,
            optimizer=optimizer,
            learning_rate=learning_rate,
            sparsity=sparsity,
            penalties=penalties,
            execution=execution,
            ignore_index=ignore_index,
            class_weights=class_weights,
            seed=seed,
        )
        if sparsity.end_step is not None and sparsity.end_step > stepper.steps:
            _LOG.warning(
                "the prune schedule ends at step %d, the run at step %d: it is shortened to that",
                sparsity.end_step,
                stepper.steps,
            )
        run = Run(
            stepper, accelerator, reporting=reporting, validate=validate, store=store, facts=facts
        )
        run.begin(first, saved)
        journal = None
        if output is not None and accelerator.is_main_process:
            journal = Journal(output, after_step=run.step, tensorboard=reporting.tensorboard)
            stack.enter_context(journal)
        stop = stack.enter_context(StopSignal())
        yield from run.until(last, batch, journal, stop)


def _span(stages: Sequence[StagePlan], only: str | None) -> tuple[int, int]:
    """Give the first and one past the last step that this call is to carry out."""
    names = [stage.name for stage in stages]
    if not stages or len(set(names)) < len(names):
        raise UsageError(f"stages must have names of their own, found {names}")
    if only is None:
        return 0, sum(stage.steps for stage in stages)
    if only not in names:
        raise UsageError(f"there is no stage {only!r}; the recipe has {', '.join(names)}")
    position = names.index(only)
    first = sum(stage.steps for stage in stages[:position])
    return first, first + stages[position].steps


def _check_teacher(stages: Sequence[StagePlan], teacher: nn.Module | None) -> None:
    for stage in stages:
        if stage.needs_teacher and teacher is None:
            needing = [term.type for term in stage.losses if term.needs_teacher]
            raise UsageError(
                f"stage {stage.name!r} learns from a teacher ({', '.join(needing)}), and none was "
                "given"
            )
