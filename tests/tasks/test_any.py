"""Any model: closeness is that of every output and instance; labels count where they fit."""

import pytest
import torch
from torch import nn

from dynprune.data.calls import CallData
from dynprune.errors import InputError, UsageError
from dynprune.example import Example
from dynprune.tasks.any import AnyTask
from dynprune.tasks.task import Reading


class Two(nn.Module):
    """Two outputs to compare: the input scaled, and its sums; one of whole numbers besides."""

    def __init__(self, scale=1.0, shift=0.0):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(scale)), shift

    def forward(self, x):
        return {"y": x * self.scale + self.shift, "n": x.long(), "sum": (x * self.scale).sum(1)}


def task(*calls, labels=()):
    return AnyTask(CallData("mine:calls", tuple(Example((c,)) for c in calls), labels), Reading())


X = torch.tensor([[3.0, 4.0], [0.0, 2.0]])


def test_a_model_is_its_own_equal():
    model = Two()
    found = task(X, X[:1]).settled(model).evaluate(model, Two()).figures
    assert found == pytest.approx({"cosine": 1.0, "worst": 1.0, "error": 0.0}, abs=1e-6)


def test_the_error_is_in_the_dense_outputs_power():
    model = Two(scale=1.5)
    found = task(X).settled(model).evaluate(model, Two()).figures
    assert found["cosine"] == pytest.approx(1.0)  # it points the same way
    assert found["error"] == pytest.approx(0.25)


def test_the_cosine_is_a_mean_over_outputs_and_instances():
    model = Two(shift=1.0)
    y = torch.nn.functional.cosine_similarity(X + 1, X, dim=1)
    expected = (y + 1.0) / 2  # the sums are not shifted
    found = task(X).settled(model).evaluate(model, Two()).figures
    assert found["cosine"] == pytest.approx(float(expected.mean()))
    assert found["worst"] == pytest.approx(float(expected.min()))


def test_outputs_that_are_zero_in_both_agree():
    model = Two()
    found = task(torch.zeros(2, 2)).settled(model).evaluate(model, Two()).figures
    assert found["cosine"] == 1.0
    assert found["error"] == 0.0


def test_labels_that_fit_the_logits_are_scored():
    model = Two()
    labels = (torch.tensor([1, 0]),)  # the second is wrong
    found = task(X, labels=labels).settled(model).evaluate(model, Two()).figures
    assert found["accuracy"] == 0.5


def test_labels_of_another_kind_are_left_to_the_losses():
    model = Two()
    labels = (torch.tensor([0.5, 0.1]),)
    assert "accuracy" not in task(X, labels=labels).settled(model).evaluate(model, Two()).figures


def test_a_call_that_the_model_does_not_take_is_told_with_its_own_words():
    bad = AnyTask(CallData("mine:calls", (Example((X, X)),)), Reading())
    with pytest.raises(InputError, match=r"does not take the first call of mine:calls: TypeError"):
        bad.settled(Two())


def test_models_of_other_shapes_are_not_compared():
    class Wider(Two):
        def forward(self, x):
            return torch.cat([x * self.scale, x], 1)

    with pytest.raises(UsageError, match="compare a model with the one that it came from"):
        task(X).evaluate(Wider(), Two())
