"""From a recipe to a gated model: what its keys ask for is what is done."""

import copy

import pytest
import torch

from dynprune.errors import GateError, UsageError
from dynprune.example import Example
from dynprune.gate import gates, is_gated
from dynprune.models import LoadedModel, source_of
from dynprune.models.storage import load, save
from dynprune.pipeline import apply_recipe, restore
from dynprune.recipe import load_recipe
from tests.rewrite.heads import image, segformer

CALLS = [Example((image(batch=1, seed=seed),)) for seed in range(6)]


def applied(model, *overrides):
    loaded = LoadedModel(copy.deepcopy(model), CALLS[0], source_of(model), (), "segformer")
    return apply_recipe(loaded, load_recipe("any", overrides), calibration=iter(CALLS))


def distance(one, other):
    with torch.no_grad():
        pairs = [(call.run(one).logits, call.run(other).logits) for call in CALLS]
    return float(torch.stack([(a - b).square().mean() for a, b in pairs]).mean())


def test_a_recipe_that_asks_for_a_refit_gets_nearer_to_the_dense_model(tmp_path):
    dense = segformer().eval()
    settings = ("sparsity.final=0.5", "apply.gate.align=1", "apply.gate.order=fixed")
    plain = applied(dense, *settings)
    refitted = applied(dense, *settings, "apply.calibration.refit=true")
    assert {g.kept for g in gates(plain).values()} == {g.kept for g in gates(refitted).values()}
    assert distance(refitted, dense) < 0.8 * distance(plain, dense)
    save(refitted, tmp_path / "gated")
    assert distance(load(tmp_path / "gated"), refitted) == 0.0


FIXED = ("sparsity.final=0.5", "apply.gate.align=1", "apply.gate.choose=fixed")


def test_fixing_ends_in_a_plain_model_that_is_nearer_to_the_dense_one_after_a_refit():
    dense = segformer().eval()
    plain = applied(dense, *FIXED)
    refitted = applied(dense, *FIXED, "apply.calibration.refit=true")
    for model in (plain, refitted):
        assert not is_gated(model)
        kinds = [{type(m) for m in part.segformer.modules()} for part in (model, dense)]
        assert kinds[0] == kinds[1]
    assert distance(refitted, dense) < 0.8 * distance(plain, dense)


def test_fixing_computes_what_gates_of_a_fixed_order_compute():
    dense = segformer().eval()
    settings = ("sparsity.final=0.5", "apply.gate.align=1", "apply.calibration.refit=true")
    gated = applied(dense, *settings, "apply.gate.order=fixed")
    fixed = applied(dense, *settings, "apply.gate.choose=fixed")
    # What pruning moves here is itself near float32's rounding of the logits.
    assert distance(fixed, gated) < 1e-4 * distance(fixed, dense)


def test_where_fixing_fails_the_model_has_its_own_weights_again(monkeypatch):
    def fail(*_arguments):
        raise GateError("no")

    monkeypatch.setattr("dynprune.pipeline.apply.fix_gates", fail)
    model = segformer().eval()
    before = copy.deepcopy(model)
    loaded = LoadedModel(model, CALLS[0], source_of(model), (), "segformer")
    recipe = load_recipe("any", [*FIXED, "apply.calibration.refit=true"])
    with pytest.raises(GateError):
        apply_recipe(loaded, recipe, calibration=CALLS)
    assert str(model) == str(before)
    wanted = before.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def test_a_fixed_model_is_not_restored():
    fixed = applied(segformer().eval(), *FIXED)
    before = str(fixed)
    with pytest.raises(UsageError, match="load the dense model that it was made from"):
        restore(fixed)
    assert str(fixed) == before
