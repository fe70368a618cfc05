"""A model with experts is written, counted, exported, trained and told of as any other."""

import json

import pytest
import torch
from dynprune.cli.main import app
from safetensors.torch import load_file
from typer.testing import CliRunner

from dynprune import load
from dynprune.gate.experts import ExpertLinear
from dynprune.gate.route import routers

CHOOSE = ("--set", "apply.gate.choose=experts", "--set", "apply.gate.experts=2")


@pytest.fixture(scope="module")
def experts(shared, dense, recipe, data):
    """What `dynprune apply` wrote."""
    output = shared / "experts"
    arguments = ["apply", dense, "--recipe", recipe, "--data", data, *CHOOSE, "-o", output]
    result = CliRunner().invoke(app, [str(a) for a in (*arguments, "--json")])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["modes"] == {"fixed": 4, "experts": 2}
    assert document["keep_ratio"] == 0.5
    told = {row["name"]: row for row in document["choice"]}
    assert {row["experts"] for row in told.values()} == {1, 2}
    assert "heads" in next(row["reason"] for row in told.values() if row["experts"] == 1)
    assert {row["grain"] for row in told.values()} == {None, "instance"}  # Mix-FFNs look around
    return output


def test_the_file_holds_experts_beside_narrow_layers(experts):
    model = load(experts)
    layers = [m for m in model.modules() if isinstance(m, ExpertLinear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [
        (2, 8, 8),
        (2, 8, 8),
        (2, 16, 16),
        (2, 16, 16),
    ]
    assert model.get_submodule("segformer.stages.1.blocks.0.attention").head_dim == 4


def test_the_file_holds_rows_that_experts_share_once(experts):
    weights, model = load_file(experts / "model.safetensors"), load(experts)
    whole = {name: tensor.shape for name, tensor in model.state_dict().items()}
    once = {name for name, tensor in weights.items() if tensor.shape != whole[name]}
    assert any(name.endswith("fc1.weight") for name in once)
    assert sum(t.numel() for t in weights.values()) < sum(s.numel() for s in whole.values())


def test_what_is_loaded_answers_as_what_was_written(experts, tmp_path):
    from dynprune.models.storage import save

    model = load(experts)
    save(model, tmp_path / "again")
    x = torch.randn(3, 3, 32, 48)
    assert torch.equal(load(tmp_path / "again")(x).logits, model(x).logits)


def test_inspect_tells_the_types_of_neurons(run, experts):
    notes = run("inspect", experts, "--json").document["notes"]
    assert any("4 groups are fixed" in note for note in notes)
    assert sum("has 2 experts of" in note and "(type I)" in note for note in notes) == 2


def test_multiply_adds_and_parameters_are_compared_with_the_dense_model(
    run, experts, dense, recipe
):
    found = run("report", "flops", experts, "--json").document
    wanted = run("report", "flops", dense, "--recipe", recipe, "--json").document
    assert found["dense"] == wanted["dense"]
    assert found["rewritten"] == wanted["rewritten"]
    assert found["params"]["dense"] == wanted["params"]["dense"]
    executed = found["pruned"]["executed"]["mean"]
    assert executed == found["pruned"]["analytic"]
    routers_cost = {x["name"]: x["pruned"] for x in found["layers"] if "(router)" in x["name"]}
    assert sorted(routers_cost.values()) == [2 * 8, 2 * 16]


def test_it_is_evaluated_and_predicts_as_any_model(run, experts, data, tmp_path):
    assert 0 <= run("eval", experts, "--data", data, "--json").document["miou"] <= 1
    picture = next((data / "images" / "val").iterdir())
    run("predict", experts, picture, "-o", tmp_path / "out")
    assert list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_it_is_exported_and_checked(run, experts, tmp_path, engine):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    path = tmp_path / ("m.onnx" if engine == "onnx" else "m.xml")
    record = run("export", experts, "--format", engine, "-o", path, "--json").document
    assert record["max_error"] < 1e-4
    assert record["inputs"]["pixel_values"][0] == "batch"


def test_another_recipe_and_a_way_back_are_refused(run, experts, recipe, tmp_path):
    outcome = run("apply", experts, "--recipe", recipe, "-o", tmp_path / "again", code=2)
    assert "replaced by experts for good" in outcome.err
    assert "load the dense model" in outcome.err


def test_experts_without_data_are_refused(run, dense, recipe, tmp_path):
    arguments = ["apply", dense, "--recipe", recipe, *CHOOSE, "-o", tmp_path / "none"]
    assert "add --data" in run(*arguments, code=2).err
    counted = run("report", "flops", dense, "--recipe", recipe, *CHOOSE, "--json").document
    assert counted["pruned"]["executed"]["mean"] < counted["rewritten"]


def test_it_is_distilled_and_its_routers_learn(run, dense, experts, recipe, data, tmp_path):
    out = tmp_path / "run"
    run("distill", "--teacher", dense, "--recipe", recipe, "--data", data, *CHOOSE, "-o", out)
    before, after = routers(load(experts)), routers(load(out))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name].weight, after[name].weight) for name in before)
    assert not [name for name in load_file(out / "model.safetensors") if "gates" in name]


def test_the_laws_hold(run, experts, data):
    laws = run("check", experts, "--data", data, "--json").document["laws"]
    assert {law["name"]: law["detail"] for law in laws if law["status"] == "broken"} == {}
    held = {law["name"] for law in laws if law["status"] == "ok"}
    assert {"rows alone", "threads", "save and load", "experts equal plain layers"} <= held


def test_the_card_says_what_it_is(experts):
    card = (experts / "README.md").read_text()
    assert "gave 2 hidden layers" in card
    assert "# dense, dynamically pruned" in card


def test_the_report_of_neurons_tells_their_types_and_the_use_of_each_expert(run, experts, data):
    found = run("report", "neurons", experts, "--data", data, "--json").document
    routed = [group for group in found["groups"] if group["experts"] == 2]
    assert len(routed) == 2
    for group in routed:
        assert (
            group["types"]["I"] + group["types"]["II"] + group["types"]["III"] == group["neurons"]
        )
        assert 2 * group["kept"] == 2 * group["types"]["I"] + group["types"]["II"]
        assert sum(group["use"]) == pytest.approx(1.0)
    told = run("report", "neurons", experts, "--data", data).out
    assert "chosen by" in told


@pytest.mark.parametrize("count", [1, 2])
def test_a_gated_model_is_consolidated_and_says_what_it_cost(run, gated, data, tmp_path, count):
    out = tmp_path / "routed"
    arguments = ("consolidate", gated, "--data", data, "--experts", count, "-o", out, "--json")
    found = run(*arguments).document
    assert found["experts"] == 0 or count > 1  # noise of so few pixels is alike to its gates
    assert found["experts"] + found["fixed"] == 6
    assert 0.5 <= found["agreement"] <= 1.0
    assert found["error"] < 0.5
    model = load(out)
    assert len(routers(model)) == found["experts"]
    assert model(torch.zeros(2, 3, 32, 48)).logits.shape == (2, 3, 8, 12)
    flops = run("report", "flops", out, "--json").document
    assert flops["pruned"]["executed"]["mean"] < flops["rewritten"]


def test_what_chose_nothing_is_not_consolidated(run, dense, experts, data, tmp_path):
    for model in (dense, experts):
        outcome = run("consolidate", model, "--data", data, "-o", tmp_path / "none", code=2)
        assert "no gates" in outcome.err
