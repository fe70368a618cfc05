"""Neurons that are taken out were not felt where they stood still, and can be put back."""

import copy
import json

import pytest
import torch

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.graph import find_groups
from dynprune.rewrite import Rewrite, reapply, undo
from dynprune.rewrite.narrow import can_narrow, drop_neurons
from tests.rewrite.heads import hidden_layers, image, segformer, silence


@pytest.fixture
def model():
    return segformer().eval()


@pytest.fixture
def example():
    return Example((image(),))


def test_a_neuron_that_never_moves_is_taken_out_without_a_trace(model, example):
    group = hidden_layers(model, example)[1]
    dead = [0, 3, 4]
    silence(model, group, dead, 0.7)
    expected = example.run(model).logits
    mean = torch.zeros(group.neurons)
    mean[dead] = torch.nn.functional.gelu(torch.tensor(0.7))
    drop_neurons(model, group, dead, mean)
    widths = {model.get_submodule(c.module).weight.shape[0] for c in group.producers}
    assert widths == {group.neurons - 3}
    # float32's rounding, where a bias takes the place of a sum
    torch.testing.assert_close(example.run(model).logits, expected, rtol=1e-4, atol=1e-5)


def test_layers_are_put_back_bit_for_bit(model, example):
    before = copy.deepcopy(model)
    group = hidden_layers(model, example)[0]
    drop_neurons(model, group, [1, 2], torch.ones(group.neurons))
    undo(model)
    assert str(model) == str(before)
    assert all(
        torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items()
    )


def test_a_record_makes_the_narrow_layers_again_for_the_weights_to_be_loaded(model, example):
    fresh = segformer()
    group = hidden_layers(model, example)[0]
    record = drop_neurons(model, group, [1, 2])
    again = Rewrite.from_json(json.loads(json.dumps(record.to_json())))
    reapply(fresh, [again])
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(example.run(fresh.eval()).logits, example.run(model).logits)


def test_a_record_of_another_model_is_refused(model, example):
    group = hidden_layers(model, example)[0]
    record = drop_neurons(model, group, [1])
    with pytest.raises(UsageError, match="does not fit"):
        reapply(torch.nn.Sequential(torch.nn.Linear(2, 2)), [record])


def test_heads_are_never_narrowed(model, example):
    groups = find_groups(model, example).groups
    assert {g.kind for g in groups if can_narrow(model, g)} == {"ffn"}
    assert {g.kind for g in groups} > {"ffn"}
