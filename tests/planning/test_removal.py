"""Dead neurons are those that stand still on the data; the live ones stay."""

import pytest
import torch

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.graph import find_groups
from dynprune.models import LoadedModel, ModelSource, source_of
from dynprune.models.storage import load, save
from dynprune.pipeline import apply_recipe
from dynprune.planning.removal import drop_dead
from dynprune.recipe import load_recipe
from tests.rewrite.heads import hidden_layers, image, segformer, silence

SETTINGS = ["apply.drop_dead=true", "apply.gate.align=2", "sparsity.final=0.5"]


@pytest.fixture
def model():
    return segformer().eval()


@pytest.fixture
def calls():
    return [Example((image(batch=1, seed=seed),)) for seed in range(5)]


def loaded(model):
    assert isinstance(source_of(model), ModelSource)
    return LoadedModel(model, Example((image(),)), source_of(model), (), "segformer")


def test_neurons_that_stand_still_go_and_the_function_stays(model, calls):
    groups = hidden_layers(model, calls[0])
    for group in groups:
        silence(model, group, [0, 1, 2, 3], 0.4)
    expected = calls[0].run(model).logits
    records = drop_dead(model, calls[0], find_groups(model, calls[0]).groups, calls, align=2)
    assert {r.module for r in records} == {g.name for g in groups}
    for record in records:
        assert len(record.details["dead"]) % 2 == 0
        assert {0, 1, 2, 3} <= set(record.details["dead"]) or len(record.details["dead"]) >= 4
    error = (calls[0].run(model).logits - expected).abs().max() / expected.abs().max()
    assert error < 0.1  # what else is called dead moves little


def test_a_narrowed_and_gated_model_is_written_smaller_and_loads_as_it_was(model, calls, tmp_path):
    for group in hidden_layers(model, calls[0]):
        silence(model, group, [0, 1, 2, 3], 0.4)
    plain = sum(p.numel() for p in model.parameters())
    gated = apply_recipe(loaded(model), load_recipe("any", SETTINGS), calibration=calls)
    save(gated, tmp_path / "gated")
    again = load(tmp_path / "gated")
    assert torch.equal(calls[0].run(again).logits, calls[0].run(gated).logits)
    ours = sum(p.numel() for n, p in again.named_parameters() if ".gates." not in n)
    assert ours < plain


def test_where_gating_fails_the_model_is_whole_again(model, calls):
    for group in hidden_layers(model, calls[0]):
        silence(model, group, [0, 1, 2, 3], 0.4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = load_recipe("any", [*SETTINGS, "apply.targets=[{match: 'nothing'}]"])
    with pytest.raises(Exception, match="match no neuron group"):
        apply_recipe(loaded(model), recipe, calibration=calls)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_without_data_there_is_no_telling_which_neurons_are_dead(model, calls):
    with pytest.raises(UsageError, match="there is none"):
        drop_dead(model, calls[0], [], [])
