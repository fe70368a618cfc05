"""One stage of training: its plan, and the objective that a student is driven by while it runs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynprune import gate
from dynprune.distill import losses
from dynprune.distill.batches import Inputs
from dynprune.distill.features import ENCODER_STAGES, LOGITS, Observed, Observer
from dynprune.distill.penalty import gate_l1
from dynprune.errors import UsageError
from dynprune.gate.plan import gated

__all__ = ["Loss", "LossTerm", "Objective", "Penalty", "StagePlan"]

Loss = Callable[[list[Tensor], Any], Tensor]
"""From the student's maps at a place, and the teacher's there or the labels, to a scalar: a loss of
one's own. It is a mean over the batch, so that micro-batches add up."""

LABEL_LOSS, SOFT_LABEL_LOSS = "ce", "soft_ce"
LOSS_TYPES = (*losses.FEATURE_LOSSES, LABEL_LOSS, SOFT_LABEL_LOSS)


@dataclass(frozen=True)
class LossTerm:
    """A weighted term of a stage's loss.

    Attributes:
        type: ``mse``, ``normalized_mse``, ``cosine`` or ``cwd`` between feature maps, ``ce`` with
            the labels, ``soft_ce`` with the teacher's logits; or a function of one's own, see
            `Loss`.
        weight: factor in the loss.
        on: what a feature loss or a function compares: ``encoder_stages``, ``logits``,
            ``embedding``, ``outputs``, ``group_outputs`` or ``re:PATTERN``, see
            :class:`~dynprune.distill.features.Observer`.
        temperature: of ``cwd`` and ``soft_ce``.
        against: what a function of one's own compares with: what the ``teacher`` shows at the same
            place, or the ``labels``.
    """

    type: str | Loss
    weight: float = 1.0
    on: str = ENCODER_STAGES
    temperature: float = 1.0
    against: Literal["teacher", "labels"] = "teacher"

    def __post_init__(self) -> None:
        if not callable(self.type) and self.type not in LOSS_TYPES:
            raise UsageError(f"loss {self.type!r} is not one of {', '.join(LOSS_TYPES)}")
        if self.weight < 0 or self.temperature <= 0:
            raise UsageError(
                f"loss {self.name!r}: weight={self.weight} must not be negative and "
                f"temperature={self.temperature} must be positive"
            )

    @property
    def name(self) -> str:
        """What records call the term: a function by its own name."""
        if not callable(self.type):
            return self.type
        return str(getattr(self.type, "__name__", type(self.type).__name__))

    @property
    def place(self) -> str:
        """Where the term looks in the student."""
        return self.on if callable(self.type) or self.type in losses.FEATURE_LOSSES else LOGITS

    @property
    def needs_teacher(self) -> bool:
        """Whether the term compares with the teacher."""
        return self.against == "teacher" if callable(self.type) else self.type != LABEL_LOSS

    def to_json(self) -> dict[str, Any]:
        """Return plain values, a function by its name: a changed one of that name passes for it."""
        plain = asdict(replace(self, type="mse")) | {"type": self.name}
        if not callable(self.type):
            del plain["against"]  # said by the type, and not written by earlier versions
        return plain


@dataclass(frozen=True)
class Penalty:
    """A weighted term that looks at the student alone, in every stage.

    Attributes:
        type: ``gate_l1``, see :func:`~dynprune.distill.penalty.gate_l1`.
        weight: factor in the loss.
    """

    type: str = "gate_l1"
    weight: float = 1e-4

    def __post_init__(self) -> None:
        if self.type != "gate_l1":
            raise UsageError(f"penalty {self.type!r} is not gate_l1")
        if self.weight < 0:
            raise UsageError(f"penalty gate_l1: weight={self.weight} must not be negative")


@dataclass(frozen=True)
class StagePlan:
    """A stretch of training with losses of its own.

    Attributes:
        name: that records show.
        steps: optimizer steps.
        losses: terms, added up.
    """

    name: str
    steps: int
    losses: tuple[LossTerm, ...]

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.losses:
            raise UsageError(
                f"stage {self.name!r} has {self.steps} steps and {len(self.losses)} losses; it "
                "needs at least one of each"
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        terms = [term.to_json() for term in self.losses]
        return {"name": self.name, "steps": self.steps, "losses": terms}

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with the teacher."""
        return any(term.needs_teacher for term in self.losses)

    @property
    def student_places(self) -> set[str]:
        """Where its terms look in the student."""
        return {term.place for term in self.losses}

    @property
    def teacher_places(self) -> set[str]:
        """Where its terms look in the teacher."""
        return {term.place for term in self.losses if term.needs_teacher}


class Objective(nn.Module):
    """A student together with its loss: from a batch to one number.

    The student runs inside ``forward``, so that whoever wraps this module (data parallelism, say)
    sees exactly the parameters that the loss depends on.

    Args:
        student: the model that learns.
        penalties: terms of every stage.
        ignore_index: label value that counts for nothing.
        class_weights: a weight a class for ``ce``; all 1 where None.

    Shape:
        Images ``(B, 3, H, W)`` or keyword arguments, labels ``(B, H, W)``; returns a scalar and
        its unweighted parts.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        student: nn.Module,
        *,
        penalties: Sequence[Penalty] = (),
        ignore_index: int = 255,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.penalties = tuple(penalties)
        self.ignore_index = ignore_index
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.stage: StagePlan | None = None
        self._observer: Observer | None = None

    def set_stage(self, stage: StagePlan) -> None:
        """Follow the losses of ``stage`` from now on, in place."""
        self.stage = stage
        self._observer = Observer(self.student, stage.student_places, self.group_outputs)

    @property
    def group_outputs(self) -> tuple[str, ...]:
        """Names of the layers that read gated neurons, in the model's order."""
        if not gate.is_gated(self.student):
            return ()
        plans = gated(gate.attached(self.student).plans)
        names = {channels.module for plan in plans for channels in plan.group.consumers}
        return tuple(name for name, _ in self.student.named_modules() if name in names)

    def label_weight(self, labels: Tensor) -> Tensor:
        """Return the weight of all labelled pixels, see :func:`losses.label_weight`."""
        return losses.label_weight(
            labels, ignore_index=self.ignore_index, class_weights=self.class_weights
        )

    def forward(
        self,
        inputs: Inputs,
        labels: Tensor | None,
        target: Observed | None = None,
        label_total: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the student and add up the stage's terms and the penalties.

        Args:
            inputs: pictures, or keyword arguments.
            labels: class indices; None where no term reads them.
            target: what the teacher showed on the same inputs.
            label_total: what ``ce`` divides by, see :func:`losses.cross_entropy`.
        """
        assert self.stage is not None
        assert self._observer is not None
        values: list[Tensor] = []

        def note(seen: gate.Observation) -> None:
            if seen.values is not None:
                values.append(seen.values)

        with gate.observing(note):
            seen = self._observer(inputs)
        parts: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        for term in self.stage.losses:
            value = self._term(term, seen, target, labels, label_total)
            parts[_free_name(term.name, parts)] = value.detach()
            weighted.append(term.weight * value)
        for penalty in self.penalties:
            value = gate_l1(values).to(weighted[0].device)
            parts[penalty.type] = value.detach()
            weighted.append(penalty.weight * value)
        return torch.stack(weighted).sum(), parts

    def _term(
        self,
        term: LossTerm,
        seen: Observed,
        target: Observed | None,
        labels: Tensor | None,
        label_total: Tensor | None,
    ) -> Tensor:
        if not term.needs_teacher and labels is None:
            raise UsageError(
                f"loss {term.name!r} compares with labels, and the data has none; learn from the "
                "teacher alone"
            )
        if callable(term.type):
            other = target.at(term.place) if term.needs_teacher and target else labels
            return _scalar(term.name, term.type(seen.at(term.place), other))
        if term.type == LABEL_LOSS:
            assert labels is not None
            (logits,) = seen.at(LOGITS)
            return losses.cross_entropy(
                logits,
                labels,
                ignore_index=self.ignore_index,
                class_weights=self.class_weights,
                total=label_total,
            )
        assert target is not None
        student, teacher = seen.at(term.place), target.at(term.place)
        if term.type == SOFT_LABEL_LOSS:
            return losses.soft_cross_entropy(student[0], teacher[0], temperature=term.temperature)
        if term.type == "cwd":
            return losses.channel_wise(student, teacher, temperature=term.temperature)
        return losses.FEATURE_LOSSES[term.type](student, teacher)


def _scalar(name: str, value: Any) -> Tensor:
    """Check that a loss of the user's own is one."""
    if isinstance(value, Tensor) and value.dim() == 0:
        return value.float()
    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise UsageError(f"loss {name!r} gave {found}; a loss is a tensor of one number")


def _free_name(name: str, taken: dict[str, Tensor]) -> str:
    """Return ``name``, or ``name_2``, ``name_3`` where it is taken."""
    count = 2
    free = name
    while free in taken:
        free, count = f"{name}_{count}", count + 1
    return free
