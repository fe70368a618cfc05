"""What a run of training is to do, as plain values: its stages, schedules and settings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dynprune.distill.optimizer import AdamW
from dynprune.distill.schedule import LearningRate, PruneSchedule
from dynprune.distill.stage import Penalty, StagePlan
from dynprune.errors import UsageError

__all__ = ["Execution", "Reporting", "TrainingPlan"]


@dataclass(frozen=True)
class Execution:
    """How a step is carried out.

    Attributes:
        precision: ``bf16`` runs forward passes under autocast; weights stay in float32.
        accumulate: micro-batches that the batch of a step is split into, on each process.
        clip_norm: largest norm of the gradient; None for no clipping.
        ema: decay of the moving average of the weights; None for none.
        batchnorm: ``live`` normalises by the micro-batch and updates the running statistics, as
            in the teacher's own training; ``frozen`` uses the teacher's.
        dropout: ``live`` drops in the student as the model's own configuration says (stochastic
            depth among it); ``off`` never does, so that it sees what its teacher sees.
        gradient_checkpointing: compute activations twice to save memory.
        device: ``cpu`` keeps the run there; None lets accelerate choose.
        workers: processes that prepare batches ahead.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    accumulate: int = 1
    clip_norm: float | None = None
    ema: float | None = None
    batchnorm: Literal["live", "frozen"] = "live"
    dropout: Literal["live", "off"] = "live"
    gradient_checkpointing: bool = False
    device: str | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise UsageError(f"accumulate={self.accumulate} must be at least 1")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UsageError(f"clip_norm={self.clip_norm} must be positive")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"ema={self.ema} must lie between 0 and 1")

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings that decide about the weights, and not only about time and memory."""
        names = ("precision", "accumulate", "clip_norm", "ema", "batchnorm", "dropout")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Reporting:
    """How often a run tells and saves how it stands.

    Attributes:
        log_every: steps between records.
        validate_every: steps between validations; None for one at the end alone.
        save_every: steps between checkpoints; None for one at the end alone. One is written at
            every new best validation besides.
        keep_checkpoints: latest checkpoints that are kept; the best one is kept besides.
        metric: key of the validation's scores by which the best is chosen; more is better.
        tensorboard: whether to write TensorBoard's files too.
    """

    log_every: int = 10
    validate_every: int | None = None
    save_every: int | None = 4000
    keep_checkpoints: int = 2
    metric: str = "miou"
    tensorboard: bool = False


@dataclass(frozen=True)
class TrainingPlan:
    """What a run of training is to do.

    Attributes:
        stages: in sequence.
        optimizer: settings of AdamW.
        learning_rate: its schedule.
        sparsity: how the prune ratio grows; without an end it ends with the first stage.
        penalties: terms of every stage.
        execution: how a step is carried out.
        reporting: how often the run reports, validates and saves.
        ignore_index: label value that counts for nothing.
        class_weights: a weight a class for ``ce``; all 1 where None.
        seed: of dropout and stochastic depth.
        facts: JSON-able facts besides these that must not change on resume, such as the recipe
            and a description of the data.
    """

    stages: Sequence[StagePlan]
    optimizer: AdamW = field(default_factory=AdamW)
    learning_rate: LearningRate = field(default_factory=LearningRate)
    sparsity: PruneSchedule = field(default_factory=PruneSchedule)
    penalties: Sequence[Penalty] = ()
    execution: Execution = field(default_factory=Execution)
    reporting: Reporting = field(default_factory=Reporting)
    ignore_index: int = 255
    class_weights: Sequence[float] | None = None
    seed: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def deciding(self) -> dict[str, Any]:
        """What decides about the weights, as JSON-able values: a run is resumed by the same."""
        return {
            **self.facts,
            "stages": [stage.to_json() for stage in self.stages],
            "optimizer": asdict(self.optimizer),
            "learning_rate": asdict(self.learning_rate),
            "sparsity": asdict(self.sparsity),
            "penalties": [asdict(penalty) for penalty in self.penalties],
            "execution": self.execution.deciding,
            "labels": {"ignore_index": self.ignore_index, "class_weights": self.class_weights},
            "seed": self.seed,
        }

    def stage_at(self, step: int) -> tuple[StagePlan, int]:
        """Return the stage that the step after ``step`` steps belongs to, and the stage's start."""
        start = 0
        for stage in self.stages:
            if step < start + stage.steps:
                return stage, start
            start += stage.steps
        return self.stages[-1], self.steps - self.stages[-1].steps

    def span(self, only: str | None) -> tuple[int, int]:
        """Return the first and one past the last step of a stage, or of all where None.

        Raises:
            UsageError: there is no such stage, or stages share a name.
        """
        names = [stage.name for stage in self.stages]
        if not self.stages or len(set(names)) < len(names):
            raise UsageError(f"stages must have names of their own, found {names}")
        if only is None:
            return 0, self.steps
        if only not in names:
            raise UsageError(f"there is no stage {only!r}; the recipe has {', '.join(names)}")
        position = names.index(only)
        first = sum(stage.steps for stage in self.stages[:position])
        return first, first + self.stages[position].steps
