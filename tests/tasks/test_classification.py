"""Classification: scores from the labels themselves, and classes by name before number."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dynprune.data import Preprocessing
from dynprune.data.folders import FolderData
from dynprune.distill import LossTerm, StagePlan, TrainingPlan, losses
from dynprune.errors import InputError
from dynprune.tasks.classification import Classification
from dynprune.tasks.task import Reading

PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Greys(FolderData):
    """Pictures of one grey each, which is their number."""

    def picture(self, index):
        return torch.full((3, 4, 4 + index % 2), index, dtype=torch.uint8)


class ByGrey(nn.Module):
    """Gives the logits of a table for the grey that it sees."""

    def __init__(self, table):
        super().__init__()
        self.register_parameter("table", nn.Parameter(torch.tensor(table)))

    def forward(self, pictures):
        return self.table[(pictures.mean((1, 2, 3)) * 255).round().long()]


def greys(labels, classes, known=()):
    paths = tuple(Path(f"{index}.png") for index in range(len(labels)))
    data = Greys(Path(), paths, tuple(labels), tuple(classes))
    return Classification(data, Reading(PLAIN, classes=tuple(known)))


def one_hot(*best, classes):
    return [[1.0 if c == b else -0.1 * c for c in range(classes)] for b in best]


def test_scores_are_counted_picture_by_picture():
    task = greys([0, 0, 1, 2], "abcdefg")
    model = ByGrey(one_hot(0, 3, 1, 6, classes=7))
    found = task.settled(model).evaluate(model)
    assert found.samples == 4
    assert found.figures["top1"] == 2 / 4
    # Behind the first choice come the others in order: 0 1 2 3 where it is 6.
    assert found.figures["top5"] == 4 / 4
    assert found.document["per_class"] == {
        "a": 0.5, "b": 1.0, "c": 0.0, "d": None, "e": None, "f": None, "g": None,
    }  # fmt: skip
    assert "4 of 7 classes have no picture" in found.notes[0]


def test_the_sixth_choice_is_not_among_the_first_five():
    task = greys([5, 4], "abcdefg")
    model = ByGrey(one_hot(6, 6, classes=7))
    # Choices: 6, 0, 1, 2, 3, then 4 and 5.
    assert task.settled(model).evaluate(model).figures == {"top1": 0.0, "top5": 0.0}


def test_folders_that_the_model_names_are_its_classes_in_its_own_order():
    task = greys([0, 1], ["ant", "bee"], known=["cow", "bee", "ant"])
    model = ByGrey(one_hot(2, 1, classes=3))
    settled = task.settled(model)
    assert settled.indices == (2, 1)
    assert settled.evaluate(model).figures["top1"] == 1.0
    assert settled.shares() == [0.0, 0.5, 0.5]


def test_folders_that_nobody_names_are_classes_in_sorted_order():
    task = greys([0, 1], ["ant", "bee"], known=["x", "y"])
    assert task.settled(ByGrey(one_hot(0, 1, classes=2))).indices == (0, 1)


@pytest.mark.parametrize("known", [(), ("cow", "dog", "ant")])
def test_another_number_of_classes_is_refused(known):
    task = greys([0, 1], ["ant", "bee"], known=known)
    with pytest.raises(InputError, match=r"logits of 3 classes, but .* has 2 folders"):
        task.settled(ByGrey(one_hot(0, 1, classes=3)))


def test_an_output_that_is_no_vector_of_logits_is_refused():
    with pytest.raises(InputError, match="classification needs logits"):
        greys([0], ["ant"]).settled(Maps())


class Maps(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pictures):
        return pictures * self.scale


def test_class_255_is_a_class_like_any_other():
    logits, labels = torch.randn(2, 300), torch.tensor([255, 255])
    ignored = Classification.ignore_index
    loss = losses.cross_entropy(logits, labels, ignore_index=ignored)
    assert loss == pytest.approx(float(-logits.log_softmax(1)[:, 255].mean()))
    plan = TrainingPlan([StagePlan("s", 1, (LossTerm("ce"),))], ignore_index=ignored)
    assert plan.ignore_index not in range(1000)
