"""Hold a model to a law: ok, broken, or not tried, and why."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dynprune.errors import DynpruneError
from dynprune.host.failures import first_line, reraise_ours
from dynprune.host.outputs import TOLERANCE
from dynprune.laws.subject import Case, NotTriedError, Subject

__all__ = ["Law", "Status", "Verdict", "difference", "judge"]

logger = logging.getLogger(__name__)

Law = Callable[[Subject], Iterable[Case]]
"""A law yields the results that must be equal; see `Case`."""

Status = Literal["ok", "broken", "not tried"]

MARGIN = 10.0  # how many times the dense model's own rounding a gated one may show
NO_LAW = 100.0  # times the tolerance: by so much a dense model is off that does not have the law
BLURS = 6  # copies with other rounding that tell a choice between equals from a wrong one


@dataclass
class Verdict:
    """What became of one law.

    Attributes:
        name: of the law.
        held: comparisons that agreed, among them `ties`.
        worst: the largest difference among them, over the largest magnitude.
        ties: comparisons that rounding of the weights moves as far: the model stood between two
            choices that are equal but for rounding, and took the other one.
        broken: what was found wrong, a sentence each.
        refused: calls that the model refuses in words of its own although the dense one answers.
        excused: what could not be tried, and why.
    """

    name: str
    held: int = 0
    worst: float = 0.0
    ties: int = 0
    broken: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """Return ``broken`` where anything is, ``not tried`` where nothing was compared."""
        if self.broken:
            return "broken"
        return "ok" if self.held else "not tried"

    @property
    def detail(self) -> str:
        """Return one line that says what was compared and what could not be."""
        if self.broken:
            more = f" (and {len(self.broken) - 1} more)" if len(self.broken) > 1 else ""
            return self.broken[0] + more
        parts = []
        if self.held:
            parts.append(f"{self.held} comparisons, at most {self.worst:.1e} apart")
        if self.ties:
            parts.append(f"{self.ties} of them within the rounding of the model's own weights")
        parts += [f"refused: {text}" for text in self.refused[:1]]
        parts += [f"not tried: {text}" if self.held else text for text in self.excused[:2]]
        left = len(self.excused) - 2
        return "; ".join(parts) + (f" (and {left} more)" if left > 0 else "")

    def to_json(self) -> dict[str, Any]:
        """Return the entry of ``dynprune check --json``."""
        return {
            "name": self.name,
            "status": self.status,
            "detail": self.detail,
            "comparisons": self.held + len(self.broken),
        }


def judge(name: str, law: Law, subject: Subject) -> Verdict:
    """Try a law on a model; where it fails, ask whether the dense model has it.

    Args:
        name: of the law.
        law: yields what must be equal.
        subject: left as it was.
    """
    verdict = Verdict(name)
    dense = _Dense(law, subject)
    try:
        for case in law(subject):
            _try(case, law, subject, dense, verdict)
    except NotTriedError as error:
        verdict.excused.append(str(error))
    except Exception as error:  # while the cases were made: the model's own code, or the law's
        reason = dense.why_not()
        if reason is None:
            verdict.broken.append(_raised(error))
        else:
            verdict.excused.append(reason)
    return verdict


class _Dense:
    """What the dense model does in the same cases, worked out when it is asked."""

    def __init__(self, law: Law, subject: Subject) -> None:
        self._law, self._subject = law, subject.mirrored()
        self._cases: Mapping[str, Case] | None = None

    def errors(self, label: str) -> list[float] | str:
        """Return the dense model's differences in a case, or why it cannot be asked."""
        try:
            if self._cases is None:
                self._cases = {case.label: case for case in self._law(self._subject)}
            if label not in self._cases:
                return "the dense model has no such case"
            case = self._cases[label]
            return differences(case.found(), case.wanted())
        except Exception as error:  # the dense model's own code refuses in its own ways
            reraise_ours(error)
            return f"the dense model does not do this: {first_line(error)}"

    def why_not(self) -> str | None:
        """Return why the law cannot even be put to the dense model, or None."""
        try:
            list(self._law(self._subject))
        except Exception as error:  # as above
            reraise_ours(error)
            return f"the dense model does not do this: {first_line(error)}"
        return None


def _try(case: Case, law: Law, subject: Subject, dense: _Dense, verdict: Verdict) -> None:
    try:
        wanted = case.wanted()
        found = case.found()
    except NotTriedError as error:
        verdict.excused.append(f"{case.label}: {error}")
        return
    except Exception as error:  # whatever the gated model raises where the dense one does not
        theirs = [] if case.own else dense.errors(case.label)
        if isinstance(theirs, str):
            verdict.excused.append(f"{case.label}: {theirs}")
        elif isinstance(error, DynpruneError):
            verdict.refused.append(f"{case.label}: {first_line(error)}")
        else:
            logger.debug("%s: %s", verdict.name, case.label, exc_info=error)
            verdict.broken.append(f"{case.label}: {_raised(error)}")
        return
    if not wanted and not found:
        verdict.excused.append(f"{case.label}: there is nothing to compare")
        return
    errors = differences(found, wanted)
    limits = _limits(case, wanted)
    if all(e <= limit for e, limit in zip(errors, limits, strict=True)):
        verdict.held += 1
        verdict.worst = max(verdict.worst, *errors)
        return
    theirs = [0.0] * len(errors) if case.own else dense.errors(case.label)
    if isinstance(theirs, str):
        verdict.excused.append(f"{case.label}: {theirs}")
        return
    if len(theirs) != len(errors):
        theirs = [0.0] * len(errors)
    off = [
        (e, t)
        for e, t, limit in zip(errors, theirs, limits, strict=True)
        if e > limit and t <= NO_LAW * max(limit, 1e-12) and not e <= MARGIN * t
    ]
    if not off:
        verdict.excused.append(f"{case.label}: the dense model does not have this law")
        return
    worst, their = max(off)
    if _between_choices(case, law, subject, wanted, worst):
        verdict.held += 1
        verdict.ties += 1
        return
    verdict.broken.append(f"{case.label}: {worst:.1e} apart, the dense model {their:.1e}")


def _limits(case: Case, wanted: Sequence[Tensor]) -> list[float]:
    if case.exact:
        return [0.0] * max(1, len(wanted))
    return [max(case.tolerance, TOLERANCE.get(t.dtype, 0.0)) for t in wanted] or [0.0]


def _between_choices(
    case: Case,
    law: Law,
    subject: Subject,
    wanted: Sequence[Tensor],
    worst: float,
) -> bool:
    """Whether rounding alone moves the model as far as two results are apart: a choice of equals.

    Rounding of this size is put into the weights; a model whose choices are clear hardly moves.
    """
    if case.exact or not case.blur or not worst < float("inf"):
        return False
    for seed in range(BLURS):
        blurred = subject.blurred(case.blur, seed)
        other = next((c for c in law(blurred) if c.label == case.label), None)
        if other is None:
            return False
        if max(differences(other.wanted(), wanted), default=0.0) >= worst / 3:
            return True
    return False


def differences(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[float]:
    """Return for each tensor the largest difference over the largest magnitude; inf by shape."""
    if len(found) != len(wanted):
        return [float("inf")] * max(1, len(wanted))
    return [difference(f, w) for f, w in zip(found, wanted, strict=True)]


def difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference of two tensors over the largest magnitude of the second.

    Whole numbers differ by 0 or 1; shapes and types by infinity. Numbers that are not finite
    agree where both are the same.
    """
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    if found.dtype != wanted.dtype:
        return float("inf")
    if wanted.is_complex():
        return difference(torch.view_as_real(found), torch.view_as_real(wanted))
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(found, wanted) else 1.0
    f, w = found.detach().double(), wanted.detach().double()
    odd = ~(f.isfinite() & w.isfinite())
    if bool((odd & ~((f == w) | (f.isnan() & w.isnan()))).any()):
        return float("inf")
    f, w = f.masked_fill(odd, 0.0), w.masked_fill(odd, 0.0)
    return float((f - w).abs().max() / w.abs().max().clamp_min(1e-12))


def _raised(error: Exception) -> str:
    return f"raises {type(error).__name__}: {first_line(error)}"
