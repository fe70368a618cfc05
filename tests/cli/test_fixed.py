"""A model with fixed groups is a plain model to every command, and says what was removed."""

import json

import pytest
import torch
from dynprune.cli.main import app
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from dynprune import load

CHOOSE = ("--set", "apply.gate.choose=fixed")


@pytest.fixture(scope="module")
def fixed(shared, dense, recipe, data):
    """What `dynprune apply` wrote."""
    output = shared / "fixed"
    arguments = [
        "apply",
        dense,
        "--recipe",
        recipe,
        "--data",
        data,
        *CHOOSE,
        "-o",
        output,
        "--json",
    ]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["modes"] == {"fixed": 6}
    assert document["keep_ratio"] == 0.5
    return output


def test_the_file_is_smaller_and_holds_narrow_plain_layers(fixed, dense):
    sizes = [(d / "model.safetensors").stat().st_size for d in (fixed, dense)]
    assert sizes[0] < sizes[1]
    weights = load_file(fixed / "model.safetensors")
    assert not [name for name in weights if "gate" in name]
    model = load(fixed)
    blocks = [m for n, m in model.named_modules() if n.endswith("fc1")]
    assert {type(block) for block in blocks} == {nn.Linear}
    assert [block.out_features for block in blocks] == [8, 16]
    attention = model.get_submodule("segformer.stages.1.blocks.0.attention")
    assert attention.scaling == 8**-0.5
    assert attention.head_dim == 4


def test_weights_alone_choose_the_sets_where_no_data_is_given(run, dense, recipe, tmp_path):
    document = run(
        "apply", dense, "--recipe", recipe, *CHOOSE, "-o", tmp_path / "out", "--json"
    ).document
    assert document["modes"] == {"fixed": 6}
    assert document["calibrated"] is False


def test_inspect_tells_what_was_removed(run, fixed):
    document = run("inspect", fixed, "--json").document
    assert "6 groups are fixed" in document["notes"][0]
    assert "removed from their layers for good" in document["notes"][0]


def test_multiply_adds_and_parameters_are_compared_with_the_dense_model(run, fixed, dense, recipe):
    found = run("report", "flops", fixed, "--json").document
    wanted = run("report", "flops", dense, "--recipe", recipe, "--json").document
    assert found["dense"] == wanted["dense"]
    assert found["rewritten"] == wanted["rewritten"]
    assert found["params"]["dense"] == wanted["params"]["dense"]
    executed = found["pruned"]["executed"]["mean"]
    assert executed == found["pruned"]["analytic"]
    assert executed < wanted["pruned"]["executed"]["mean"]  # gates cost, fixed sets do not
    assert found["params"]["pruned"] < found["params"]["dense"]


def test_it_is_evaluated_and_predicts_as_any_model(run, fixed, data, tmp_path):
    assert 0 <= run("eval", fixed, "--data", data, "--json").document["miou"] <= 1
    picture = next((data / "images" / "val").iterdir())
    run("predict", fixed, picture, "-o", tmp_path / "out")
    assert list((tmp_path / "out").iterdir())


def test_it_is_exported_and_checked(run, fixed, tmp_path):
    pytest.importorskip("onnxruntime")
    record = run("export", fixed, "--format", "onnx", "-o", tmp_path / "m.onnx", "--json").document
    assert record["max_error"] < 1e-4


def test_another_recipe_is_refused(run, fixed, recipe, tmp_path):
    outcome = run("apply", fixed, "--recipe", recipe, "-o", tmp_path / "again", code=2)
    assert "removed from this model for good" in outcome.err
    assert "load the dense model" in outcome.err


def test_it_is_distilled_as_any_student(run, dense, recipe, data, tmp_path):
    out = tmp_path / "run"
    run("distill", "--teacher", dense, "--recipe", recipe, "--data", data, *CHOOSE, "-o", out)
    model = load(out)
    assert model(torch.zeros(1, 3, 32, 48)).logits.shape == (1, 3, 8, 12)
    assert model.get_submodule("segformer.stages.0.blocks.0.mlp.fc1").out_features == 8


def test_the_card_says_what_was_removed(fixed):
    card = (fixed / "README.md").read_text()
    assert "50% on average over 6 groups" in card
    assert "# dense, pruned" in card
