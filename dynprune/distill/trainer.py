"""Train a student by stages, one after the other, from a checkpoint where there is one."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import nn

from dynprune.distill import fingerprint as fingerprints
from dynprune.distill.batches import BatchSource
from dynprune.distill.checkpoint import CheckpointStore
from dynprune.distill.interrupt import StopSignal
from dynprune.distill.lock import OutputLock
from dynprune.distill.metrics_log import MetricsLog, Record
from dynprune.distill.plan import TrainingPlan
from dynprune.distill.processes import join_processes
from dynprune.distill.run import Run, Validate
from dynprune.distill.stage import StagePlan
from dynprune.distill.step import Stepper
from dynprune.errors import OutputError, UsageError

__all__ = ["train"]

_LOG = logging.getLogger(__name__)


def train(
    student: nn.Module,
    teacher: nn.Module | None,
    batch: BatchSource,
    plan: TrainingPlan,
    *,
    validate: Validate | None = None,
    output: Path | None = None,
    resume: bool = False,
    only: str | None = None,
) -> Iterator[Record]:
    """Train a student, in place, and yield a record every few steps.

    Stages follow each other; the prune ratio and (unless it is set per stage) the learning rate
    move over all of them. At the end the student is in eval mode, prunes by its final ratio and
    holds the moving average of its weights, where one was asked for.

    On several processes (``accelerate launch``) each takes its share of every batch. All yield
    records; the first one alone validates and writes. Python's, NumPy's and torch's random states
    are set by the plan's seed at every step.

    Args:
        student: the model that learns; parameters that require no gradient stay as they are.
        teacher: frozen model that it learns from; None where no loss needs one.
        batch: from the step to the batch; pure, see :data:`~dynprune.distill.batches.BatchSource`.
        plan: stages, schedules and settings.
        validate: from the student to scores.
        output: directory of ``metrics.jsonl`` and ``checkpoints/``; None writes nothing.
        resume: continue from the latest whole checkpoint in ``output``; begin where there is none.
        only: name of the one stage to run, at its place in the schedules.

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
    first, last = plan.span(only)
    _check_teacher(plan.stages, teacher)
    accelerator = join_processes(plan.execution.device)
    with ExitStack() as stack:
        store = None
        if output is not None:
            if accelerator.is_main_process:
                stack.enter_context(OutputLock(output))
            store = CheckpointStore(output / "checkpoints", keep=plan.reporting.keep_checkpoints)
            if not resume and store.steps():
                raise OutputError(
                    f"{output} holds checkpoints of an earlier run: resume it, or choose another "
                    "output"
                )
        facts = fingerprints.canonical(
            {
                **plan.deciding,
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
        stepper = Stepper(student, teacher, accelerator, plan)
        end = plan.sparsity.end_step
        if end is not None and end > plan.steps:
            _LOG.warning(
                "the prune schedule ends at step %d, the run at step %d: it is shortened to that",
                end,
                plan.steps,
            )
        run = Run(stepper, accelerator, validate=validate, store=store, facts=facts)
        run.begin(first, saved)
        journal = None
        if output is not None and accelerator.is_main_process:
            journal = MetricsLog(
                output, after_step=run.step, tensorboard=plan.reporting.tensorboard
            )
            stack.enter_context(journal)
        stop = stack.enter_context(StopSignal())
        yield from run.until(last, batch, journal, stop)


def _check_teacher(stages: Sequence[StagePlan], teacher: nn.Module | None) -> None:
    for stage in stages:
        if stage.needs_teacher and teacher is None:
            needing = [term.name for term in stage.losses if term.needs_teacher]
            raise UsageError(
                f"stage {stage.name!r} learns from a teacher ({', '.join(needing)}), and none was "
                "given"
            )
