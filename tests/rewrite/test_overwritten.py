"""Weights that were overwritten come back, unless somebody has trained them since."""

import pytest
import torch
from torch import nn

from dynprune.rewrite import undo
from dynprune.rewrite.overwritten import overwriting


def overwritten(model):
    with torch.no_grad(), overwriting(model, model.parameters()):
        for parameter in model.parameters():
            parameter.add_(1.0)


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_untrained_weights_get_their_bits_back_however_they_lie_in_memory(model):
    before, parameters = bits(model), list(model.parameters())
    overwritten(model)
    assert not same(bits(model), before)
    model[0].weight.data = model[0].weight.data.t().contiguous().t()
    undo(model)
    assert same(bits(model), before)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_trained_weights_stay_all_of_them(model):
    overwritten(model)
    with torch.no_grad():
        model[1].bias.mul_(2.0)
    now = bits(model)
    undo(model)
    assert same(bits(model), now)


def test_weights_come_back_where_overwriting_them_fails(model):
    before = bits(model)
    half = (value for value in (model[0].weight, None))
    with pytest.raises(AttributeError), torch.no_grad(), overwriting(model, model.parameters()):
        _ = [weight.zero_() for weight in half]
    undo(model)
    assert same(bits(model), before)
