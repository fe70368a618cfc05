"""What each command gives back when it is used as it is meant."""

import json
import shutil

import pytest
import torch
from dynprune.cli.main import app
from typer.testing import CliRunner

from tests.cli.conftest import same_weights

KINDS = {"ffn", "qk", "v"}


def test_the_version_is_shown(run):
    assert run("--version").out.startswith("dynprune ")


def test_env_tells_the_versions(run):
    assert {"dynprune", "torch", "python"} <= run("env", "--json").document.keys()


def test_inspect_gives_the_contracts_keys_and_changes_nothing(run, dense, recipe):
    before = (dense / "model.safetensors").read_bytes()
    found = run("inspect", dense, "--recipe", recipe, "--json").document
    assert found.keys() >= {"model", "groups", "trace_seconds"}
    gated = [group for group in found["groups"] if group["mode"] != "refused"]
    assert len(gated) == 6
    for group in found["groups"]:
        assert group["kind"] in KINDS
        assert group.keys() >= {"name", "producers", "consumers", "carriers", "neurons", "heads"}
        assert (group["reason"] is None) == (group["mode"] == "compact")
    assert (dense / "model.safetensors").read_bytes() == before


def test_inspect_shows_every_group_on_demand(run, dense, recipe):
    out = run("inspect", dense, "--recipe", recipe, "--all").out
    assert out.count("mlp.fc1") == 2
    assert out.count("compact") >= 6


def test_inspect_sums_up_groups_that_are_alike_and_names_the_next_command(run, dense, recipe):
    found = run("inspect", dense, "--recipe", recipe)
    every = run("inspect", dense, "--recipe", recipe, "--all", "--json").document["groups"]
    rows = [line.split() for line in found.out.splitlines()[:-1]]
    assert sum(int(row[1]) for row in rows if row[1].isdigit()) == len(every)
    assert f"next: dynprune apply {dense} --recipe {recipe}" in found.err


def test_inspect_needs_no_recipe(run, dense):
    groups = run("inspect", dense, "--input-size", "64x64", "--json").document["groups"]
    assert {group["kind"] for group in groups if group["mode"] == "compact"} == KINDS


def test_inspect_of_a_gated_model_tells_what_was_done(run, gated):
    groups = run("inspect", gated, "--json").document["groups"]
    assert sum(group["mode"] == "compact" for group in groups) == 6


def test_apply_writes_a_model_that_loads_without_a_recipe(gated):
    from dynprune.gate import gates
    from dynprune.models.storage import load

    (gated / "recipe.yaml").rename(gated / "moved")
    try:
        model = load(gated)
    finally:
        (gated / "moved").rename(gated / "recipe.yaml")
    assert {gate.kept / gate.width for gate in gates(model).values()} == {0.5}
    assert model(torch.zeros(1, 3, 32, 48)).logits.shape == (1, 3, 8, 12)


def test_apply_needs_no_weights_where_the_recipe_builds_the_model(run, recipe, tmp_path):
    document = run(
        "apply", "--recipe", recipe, "--weights", "random", "-o", tmp_path / "out", "--json"
    ).document
    assert document["output"] == str(tmp_path / "out")
    assert document["modes"]["compact"] == 6
    assert not document["calibrated"]


def test_apply_takes_overrides(run, dense, recipe, tmp_path):
    document = run(
        "apply", dense, "--recipe", recipe, "--set", "apply.targets=[{kind: ffn}]",
        "--set", "sparsity.final=0.25", "-o", tmp_path / "out", "--json",
    ).document  # fmt: skip
    assert document["modes"]["compact"] == 2
    assert document["keep_ratio"] == pytest.approx(0.75)


def test_a_dry_run_writes_nothing(run, dense, recipe, data, tmp_path):
    out = tmp_path / "out"
    flags = ("--recipe", recipe, "-o", out, "--dry-run", "--json")
    assert run("apply", dense, *flags).document["dry_run"]
    assert run("distill", "--teacher", dense, "--data", data, *flags).document["steps"] == 4
    assert list(tmp_path.iterdir()) == []


def test_eval_gives_the_contracts_keys(run, gated, data):
    found = run("eval", gated, "--data", data, "--json").document
    assert found["images"] == 2
    assert 0 <= found["miou"] <= 1
    assert 0 <= found["pixel_accuracy"] <= 1
    assert list(found["per_class"]) == ["sky", "sea", "land"]


def test_eval_shows_every_class_and_the_split(run, dense, data):
    out = run("eval", dense, "--data", data, "--split", "train").out
    assert "sea" in out
    assert "images 4" in out


def test_predict_writes_two_pictures_for_each(run, dense, data, tmp_path):
    pictures = sorted((data / "images" / "val").iterdir())
    document = run("predict", dense, *pictures, "-o", tmp_path / "out", "--json").document
    assert len(document["images"]) == 2
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"0.png", "0_labels.png", "1.png", "1_labels.png"}


def test_a_batch_is_counted_of_a_models_own_example_too(run, tmp_path, monkeypatch):
    (tmp_path / "batched.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make():\n"
        "    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 6))\n"
        "    model.example_input_array = torch.randn(1, 6)\n    return model\n"
    )
    monkeypatch.chdir(tmp_path)
    one = run("report", "flops", "batched:make", "--json").document
    four = run("report", "flops", "batched:make", "--batch", "4", "--json").document
    assert (one["input"], four["input"]) == ([1, 6], [4, 6])
    assert four["dense"] == 4 * one["dense"]


@pytest.fixture(scope="module")
def counted(gated):
    result = CliRunner().invoke(app, ["report", "flops", str(gated), "--json"])
    return json.loads(result.stdout)


def test_report_flops_gives_the_contracts_keys(counted):
    assert counted["unit"] == "MAC"
    assert counted["input"] == [1, 3, 32, 48]
    assert counted["dense"] > counted["rewritten"] > counted["pruned"]["analytic"]
    ran = counted["pruned"]["executed"]
    assert ran["min"] <= ran["mean"] <= ran["max"]
    assert ran["mean"] == pytest.approx(counted["pruned"]["analytic"], rel=0.01)
    assert counted["params"].keys() == {"dense", "pruned"}
    assert sum(layer["dense"] for layer in counted["layers"]) == counted["dense"]


def test_report_flops_gates_a_dense_model_by_the_recipe_first(run, dense, recipe):
    flags = ("--recipe", recipe, "--input-size", "64x64", "--json")
    found = run("report", "flops", dense, *flags).document
    assert found["input"] == [1, 3, 64, 64]
    assert found["rewritten"] > found["pruned"]["analytic"]


def test_report_flops_of_a_batch_runs_on_pictures(run, gated, data, counted):
    found = run("report", "flops", gated, "--data", data, "--batch", 2, "--json").document
    assert found["dense"] == 2 * counted["dense"]
    # What skipped neurons' means contribute is computed once a call, whatever the batch.
    twice = 2 * counted["pruned"]["executed"]["min"]
    assert found["pruned"]["executed"]["min"] == pytest.approx(twice, rel=0.01)


def test_report_flops_shows_a_tree_or_the_dearest_modules(run, gated):
    assert "decode_head" in run("report", "flops", gated, "--depth", 1).out
    blocks = run("report", "flops", gated).out
    every = run("report", "flops", gated, "--all").out
    assert "blocks.0" in blocks
    assert "fc1" in every
    assert "fc1" not in blocks
    assert "dense M MACs" in run("report", "flops", gated, "--sort").out


def test_distill_trains_writes_and_resumes_nothing_twice(run, dense, recipe, data, tmp_path):
    out = tmp_path / "run"
    flags = ("--data", data, "--teacher", dense, "-o", out, "--json", "--device", "cpu")
    first = run("distill", "--recipe", recipe, *flags)
    assert first.document["steps"] == 4
    assert 0 <= first.document["validation"]["miou"] <= 1
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in records][-1] == "logits"
    assert {"model.safetensors", "dynprune.json", "recipe.yaml", "checkpoints"} <= {
        path.name for path in out.iterdir()
    }
    shutil.copytree(out, tmp_path / "before")
    run("distill", *flags, "--resume")  # the recipe is the run's own
    assert same_weights(out, tmp_path / "before")
    found = run("eval", out, "--data", data, "--json").document
    assert found["miou"] == pytest.approx(first.document["validation"]["miou"])


def test_distill_overwrites_its_own_run_alone(run, dense, recipe, data, tmp_path):
    out = tmp_path / "run"
    flags = ("--recipe", recipe, "--data", data, "--teacher", dense, "-o", out, "--device", "cpu")
    run("distill", *flags, "--stage", "features")
    again = run("distill", *flags, "--overwrite", "--json").document
    assert again["steps"] == 4
    (out / "thesis.tex").write_text("mine")
    assert "thesis.tex" in run("distill", *flags, "--overwrite", code=4).err
    assert (out / "thesis.tex").read_text() == "mine"


def test_recipe_list_names_every_recipe(run):
    from dynprune.recipe import recipe_names

    listed = run("recipe", "list", "--json").document["recipes"]
    assert [recipe["name"] for recipe in listed] == recipe_names()
    assert "segformer-b2" in run("recipe", "list").out


def test_recipe_show_keeps_comments_and_resolves_on_demand(run):
    assert "# SegFormer-B2" in run("recipe", "show", "segformer-b2").out
    assert "final: 0.5" in run("recipe", "show", "demo", "--set", "sparsity.final=0.5").out
    assert run("recipe", "show", "demo", "--json").document["schema"] == "dynprune/1"


def test_recipe_copy_writes_a_file_once(run, tmp_path):
    target = tmp_path / "mine.yaml"
    run("recipe", "copy", "demo", "-o", target)
    assert run("recipe", "validate", target, "--json").document == {"recipe": "demo", "valid": True}
    run("recipe", "copy", "demo", "-o", target, code=4)
    run("recipe", "copy", "demo", "-o", target, "--overwrite")


@pytest.mark.parametrize("command", ["inspect", "apply", "distill", "eval", "predict", "report"])
def test_every_command_explains_itself(run, command):
    assert "Usage" in run(command, "--help").out


def test_apply_for_latency_gates_what_pays_here(run, dense, recipe, tmp_path, monkeypatch):
    arguments = ("apply", dense, "--recipe", recipe, "--target", "latency", "-o")
    monkeypatch.setattr("dynprune.planning.choose.MARGIN", 1e9)
    made = run(*arguments, tmp_path / "all", "--json").document
    assert made["modes"]["compact"] == 6
    monkeypatch.setattr("dynprune.planning.choose.MARGIN", 0.0)
    assert "would not pay here" in run(*arguments, tmp_path / "none", code=3).err
    assert not (tmp_path / "none").exists()
    assert "'macs' or 'latency'" in run(*arguments[:4], "--target", "x", "-o", "y", code=2).err


def test_other_counters_stand_beside_ours_with_a_reason(run, dense, gated):
    found = run("report", "flops", gated, "--json", "--counters").document
    ours, *others = found["counters"]
    assert ours["macs"] == found["pruned"]["executed"]["mean"]
    assert all(row["macs"] == row["comparable"] and row["reason"] for row in others)
    assert "fvcore" in run("report", "flops", dense, "--counters").out
