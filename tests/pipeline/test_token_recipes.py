"""Recipes of the token's grain: applied, refitted, written, loaded, compiled and exported."""

import pytest
import torch
import transformers as hf

import dynprune
from dynprune.errors import RecipeError
from dynprune.gate import gates
from dynprune.measure.macs import macs_report
from dynprune.recipe import load_recipe
from tests.gate.zoo_laws import ROUNDING

TOKEN = ("apply.targets=[{kind: ffn}]", "apply.gate.grain=token", "sparsity.final=0.5")


def vit():
    torch.manual_seed(0)
    config = hf.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    return hf.ViTForImageClassification(config).eval()


def pictures(count=6):
    random = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 32, 32, generator=random) for _ in range(count)]


def applied(*settings):
    recipe = load_recipe("any", (*TOKEN, *settings))
    return dynprune.apply(vit(), pictures()[0][:1], recipe, calibration=pictures())


@pytest.mark.parametrize("predict", ["low-rank", "preactivation"])
def test_a_refit_in_sequence_comes_nearer_to_the_dense_model(predict):
    dense, given = vit(), pictures()
    with torch.no_grad():
        wanted = torch.cat([dense(x).logits for x in given])
        errors = {}
        for refit in ("false", "sequential"):
            ours = applied(f"apply.gate.predict={predict}", f"apply.calibration.refit={refit}")
            errors[refit] = float((torch.cat([ours(x).logits for x in given]) - wanted).norm())
    assert errors["sequential"] < errors["false"]


def test_what_is_written_and_loaded_chooses_alike(tmp_path):
    model = applied("apply.gate.predict=preactivation")
    dynprune.save(model, tmp_path / "written")
    again = dynprune.load(tmp_path / "written")
    again = getattr(again, "module", again)
    (x, *_) = pictures()
    with torch.no_grad():
        assert torch.equal(model(x).logits, again(x).logits)


def test_restore_gives_the_dense_model():
    model = applied()
    dense = vit()
    dynprune.restore(model)
    (x, *_) = pictures()
    with torch.no_grad():
        assert torch.equal(model(x).logits, dense(x).logits)


def test_an_exported_program_computes_what_the_model_does():
    model = applied("apply.gate.predict=preactivation")
    (x, *_) = pictures()
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        wanted = model(x).logits
        found = program.module()(x).logits
    assert float((found - wanted).abs().max() / wanted.abs().max()) < ROUNDING


def test_gates_are_counted_for_every_token_and_masked_execution_is_named():
    model = applied("apply.gate.hidden=8")
    example = dynprune.Example((pictures()[0][:1],)) if hasattr(dynprune, "Example") else None
    if example is None:
        from dynprune.example import Example

        example = Example((pictures()[0][:1],))
    report = macs_report(model, example)
    assert set(report.masked) == set(gates(model))
    tokens = 1 + 16
    costs = {layer.name: layer.pruned for layer in report.layers}
    for name in gates(model):
        assert costs[f"{name} (gate)"] == tokens * 8 * (32 + 64)
    assert report.executed.mean >= report.dense
    assert report.analytic < report.dense


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (("apply.gate.grain=instance", "apply.gate.predict=both"), "is for gate.grain: token"),
        (("apply.gate.pool=mean-std",), "gate.pool: mean-std has no effect at grain token"),
        (("apply.gate.order=fixed",), "gate.order: fixed has no effect at grain token"),
        (("apply.gate.choose=fixed", "apply.gate.predict=both"), "not for choose: fixed"),
    ],
)
def test_keys_without_effect_are_refused(settings, text):
    with pytest.raises(RecipeError, match=text):
        load_recipe("any", (*TOKEN, *settings))
