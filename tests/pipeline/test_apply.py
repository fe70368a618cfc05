"""From a recipe to a gated model: what its keys ask for is what is done."""

import copy

import torch

from dynprune.example import Example
from dynprune.gate import gates
from dynprune.models import LoadedModel, source_of
from dynprune.models.storage import load, save
from dynprune.pipeline import apply_recipe
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
