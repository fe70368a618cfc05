"""Changes are taken back in the order that is right, each by what it noted itself."""

import copy
from functools import partial

import pytest
from torch import nn

from dynprune.rewrite.made import count_made, note_undo, take_back


def put(module, value, _):
    module.value = value


def changed(model, value):
    note_undo(model, partial(put, model[0], model[0].value))
    model[0].value = value


@pytest.fixture
def model():
    made = nn.Sequential(nn.ReLU())
    made[0].value = 0
    return made


def test_the_latest_change_is_taken_back_first(model):
    for value in (1, 2, 3):
        changed(model, value)
    assert count_made(model) == 3
    take_back(model, since=1)
    assert (model[0].value, count_made(model)) == (1, 1)
    take_back(model)
    assert (model[0].value, count_made(model)) == (0, 0)
    assert not [name for name in vars(model) if "dynprune" in name]


def test_a_copy_takes_its_own_changes_back(model):
    changed(model, 1)
    copied = copy.deepcopy(model)
    take_back(copied)
    assert (model[0].value, copied[0].value) == (1, 0)


def test_a_change_that_cannot_be_taken_back_stands_with_those_before_it(model):
    changed(model, 1)

    def refuse(_):
        raise ValueError("no")

    note_undo(model, refuse)
    with pytest.raises(ValueError, match="no"):
        take_back(model)
    assert (model[0].value, count_made(model)) == (1, 2)


def test_a_model_that_nobody_changed_is_left_alone(model):
    before = dict(vars(model))
    take_back(model)
    assert vars(model) == before
