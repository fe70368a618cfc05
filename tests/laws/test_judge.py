"""A verdict tells a wrong answer from what the dense model breaks too and from a tie."""

import pytest
import torch
from torch import nn

from dynprune.errors import GateError
from dynprune.example import Example
from dynprune.laws import Case, NotTriedError, Subject, judge
from dynprune.laws.judge import difference


class Scale(nn.Module):
    """Multiplies by a weight, which a test may set."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, x):
        return x * self.by


@pytest.fixture
def subject(tmp_path):
    call = Example((torch.ones(3, 4),))
    return Subject(Scale(2.0), Scale(1.0), (call,), tmp_path)


def law(found, wanted, **options):
    """A law of one case, on what the model makes of its call."""

    def cases(subject):
        made = subject.run(subject.calls[0])[0]
        yield Case("once", lambda: [found(made)], lambda: [wanted(made)], **options)

    return cases


def test_what_differs_where_the_dense_model_does_not_is_broken(subject):
    verdict = judge("twos", law(lambda y: y, lambda y: torch.ones_like(y)), subject)
    assert verdict.status == "broken"
    assert verdict.detail == "once: 1.0e+00 apart, the dense model 0.0e+00"


def test_what_the_dense_model_breaks_too_is_not_tried(subject):
    verdict = judge("threes", law(lambda y: y, lambda y: torch.full_like(y, 3.0)), subject)
    assert verdict.status == "not tried"
    assert "the dense model does not have this law" in verdict.detail


def test_a_law_of_our_own_is_not_asked_of_the_dense_model(subject):
    own = law(lambda y: y, lambda y: torch.full_like(y, 3.0), own=True)
    assert judge("threes", own, subject).status == "broken"


def test_what_agrees_is_counted(subject):
    verdict = judge("same", law(lambda y: y, lambda y: y), subject)
    assert (verdict.status, verdict.held, verdict.worst) == ("ok", 1, 0.0)
    assert verdict.to_json()["comparisons"] == 1


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (GateError("not so"), "not tried", "refused: once: not so"),
        (RuntimeError("a bug"), "broken", "once: raises RuntimeError: a bug"),
        (NotTriedError("no sequence"), "not tried", "once: no sequence"),
    ],
)
def test_what_is_raised_is_a_refusal_a_bug_or_a_reason(subject, error, status, word):
    def raises(y):
        if float(y.max()) == 2.0:  # the gated one
            raise error
        return y

    verdict = judge("raising", law(raises, lambda y: y), subject)
    assert (verdict.status, verdict.detail) == (status, word)


def test_what_the_dense_model_raises_too_is_not_tried(subject):
    def raises(y):
        raise ValueError("no such size")

    verdict = judge("raising", law(raises, lambda y: y), subject)
    assert verdict.status == "not tried"
    assert "the dense model does not do this: no such size" in verdict.detail


class Step(nn.Module):
    """Chooses by a threshold that its input meets exactly."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))

    def forward(self, x):
        return torch.where(x.sum(1, keepdim=True) >= self.at, x, -x)


@pytest.mark.parametrize(("at", "status", "ties"), [(4.0, "ok", 1), (3.0, "broken", 0)])
def test_a_choice_between_equals_is_a_tie_and_a_clear_one_is_not(at, status, ties, tmp_path):
    call = Example((torch.ones(3, 4),))
    subject = Subject(Step(at), Step(-99.0), (call,), tmp_path)

    def cases(of):
        gated = float(of.model.at.detach()) > 0
        wanted = of.run(call)
        yield Case("once", lambda: [-wanted[0] if gated else wanted[0]], lambda: wanted)

    verdict = judge("choice", cases, subject)
    assert (verdict.status, verdict.ties) == (status, ties)


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        (torch.ones(2), torch.ones(3), float("inf")),
        (torch.ones(2), torch.ones(2).double(), float("inf")),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), 1.0),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), 0.5),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0]), 0.0),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([0.0, 1.0]), float("inf")),
        (torch.ones(0, 4), torch.ones(0, 4), 0.0),
    ],
)
def test_a_difference_is_over_the_largest_magnitude(found, wanted, expected):
    assert difference(found, wanted) == expected
