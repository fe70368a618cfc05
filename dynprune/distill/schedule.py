"""How the prune ratio and the learning rate move with the step: pure functions of progress."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from dynprune.errors import UsageError

__all__ = [
    "RAMPS",
    "LearningRate",
    "PruneSchedule",
    "Ramp",
    "constant",
    "cosine",
    "cubic",
    "linear",
    "poly",
    "warmup",
]

Ramp = Literal["linear", "cubic", "cosine", "constant"]


def _clamped(progress: float) -> float:
    return min(1.0, max(0.0, progress))


def linear(progress: float) -> float:
    r"""Grow at one speed: :math:`\min(1, p)`.

    With p = t / T this is the annealing of DynaSegFormer (arXiv 2111.09499),
    :math:`r_t = r \min(1, t / T)`.
    """
    return _clamped(progress)


def cubic(progress: float) -> float:
    r"""Grow fast at first: :math:`1 - (1 - p)^3` (Zhu and Gupta, arXiv 1710.01878, Eq. 1)."""
    return 1.0 - (1.0 - _clamped(progress)) ** 3


def cosine(progress: float) -> float:
    r"""Grow slowly at both ends: :math:`(1 - \cos \pi p) / 2`."""
    return 0.5 * (1.0 - math.cos(math.pi * _clamped(progress)))


def constant(progress: float) -> float:  # noqa: ARG001 - a ramp takes its progress
    """Do not grow: the whole share from the first step, the control for annealing."""
    return 1.0


RAMPS: Mapping[Ramp, Callable[[float], float]] = {
    "linear": linear,
    "cubic": cubic,
    "cosine": cosine,
    "constant": constant,
}


@dataclass(frozen=True)
class PruneSchedule:
    """When the student reaches its final prune ratio.

    Attributes:
        type: shape of the growth.
        end_step: optimizer steps after which the final ratio is reached, counted over all
            stages. Exclusive with ``end_share``.
        end_share: the same as a share of all steps, 0 to 1. With neither, the growth takes all
            steps; `dynprune.distill.train` then sets ``end_step`` to the end of its first stage.

    Example:
        >>> PruneSchedule("linear", end_step=100).fraction(25, 200)
        0.25
    """

    type: Ramp = "linear"
    end_step: int | None = None
    end_share: float | None = None

    def __post_init__(self) -> None:
        if self.type not in RAMPS:
            raise UsageError(f"prune schedule {self.type!r} is not one of {', '.join(RAMPS)}")
        if self.end_step is not None and self.end_share is not None:
            raise UsageError("give the prune schedule end_step or end_share, not both")
        if self.end_step is not None and self.end_step < 0:
            raise UsageError(f"end_step={self.end_step} of the prune schedule is negative")
        if self.end_share is not None and not 0.0 <= self.end_share <= 1.0:
            raise UsageError(f"end_share={self.end_share} must lie between 0 and 1")

    def end(self, steps: int) -> float:
        """Return the step, of ``steps`` in all, at which the final ratio is reached.

        A run shorter than ``end_step`` reaches it with its last step.
        """
        if self.end_step is not None:
            return min(self.end_step, steps)
        return steps * (1.0 if self.end_share is None else self.end_share)

    def fraction(self, step: int, steps: int) -> float:
        """Return the fraction of the final prune ratio after ``step`` of ``steps`` steps."""
        end = self.end(steps)
        return RAMPS[self.type](1.0 if end <= 0 else step / end)


def poly(step: int, steps: int, power: float) -> float:
    r"""Fall to zero at the end: :math:`(1 - t / T)^{power}`."""
    return max(0.0, 1.0 - step / steps) ** power


def warmup(step: int, steps: int) -> float:
    """Rise linearly over ``steps`` steps: the first of them has ``1 / steps``, never zero."""
    return 1.0 if steps <= 0 else min(1.0, (step + 1) / steps)


@dataclass(frozen=True)
class LearningRate:
    """How the learning rate changes over a run.

    Attributes:
        type: ``poly`` falls to zero, ``constant`` does not.
        power: exponent of ``poly``.
        warmup_steps: optimizer steps of linear rise; it multiplies the curve.
        per: whether one curve spans the whole ``run`` or each ``stage`` has its own.

    Example:
        >>> LearningRate(power=1.0).factor(50, 100)
        0.5
    """

    type: Literal["poly", "constant"] = "poly"
    power: float = 1.0
    warmup_steps: int = 0
    per: Literal["run", "stage"] = "run"

    def __post_init__(self) -> None:
        if self.type not in ("poly", "constant"):
            raise UsageError(f"learning rate schedule {self.type!r} is not poly or constant")
        if self.power < 0 or self.warmup_steps < 0:
            raise UsageError(
                f"power={self.power} and warmup_steps={self.warmup_steps} of the learning rate "
                "must not be negative"
            )

    def factor(self, step: int, steps: int) -> float:
        """Return the learning rate of the step that follows ``step`` steps, over the peak."""
        curve = poly(step, steps, self.power) if self.type == "poly" else 1.0
        return curve * warmup(step, self.warmup_steps)
