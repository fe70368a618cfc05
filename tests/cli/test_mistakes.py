"""A user's mistakes: the exit code, one message on stderr, nothing on stdout, nothing written."""

import errno
import json
import logging
import os
import shutil

import pytest

from dynprune.errors import GateError


@pytest.fixture
def fails(run):
    """Run a command that must fail; give its one message."""

    def call(*arguments, code):
        outcome = run(*arguments, code=code)
        assert outcome.out == ""
        lines = outcome.err.splitlines()
        (first,) = [index for index, line in enumerate(lines) if line.startswith("error: ")]
        assert "Traceback" not in outcome.err
        return "\n".join(lines[first:])

    return call


@pytest.fixture
def copied(tmp_path):
    """Copy a directory that other tests share."""

    def copy(source, name="copy"):
        return shutil.copytree(source, tmp_path / name)

    return copy


def test_an_unknown_recipe_is_named_and_the_nearest_one_too(fails, dense, tmp_path):
    message = fails("apply", dense, "--recipe", "segfomer-b2", "-o", tmp_path / "o", code=2)
    assert "Did you mean segformer-b2?" in message


def test_all_errors_of_a_recipe_come_in_one_message(fails, dense, recipe, tmp_path):
    message = fails(
        "apply", dense, "--recipe", recipe, "-o", tmp_path / "o", "--set", "aply=1",
        "--set", "sparsity.final=high", "--set", "runtime.seed=-1", "--json", code=2,
    )  # fmt: skip
    assert "3 errors" in message
    assert "aply: unknown key; did you mean apply?" in message
    assert 'sparsity.final: input should be a valid number, found "high"' in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["apply", "inspect"])
def test_a_target_that_matches_nothing_exits_3(fails, dense, recipe, tmp_path, command):
    output = ["-o", tmp_path / "o"] if command == "apply" else []
    message = fails(
        command, dense, "--recipe", recipe, *output, "--set", "apply.targets.3.match='re:fc9'",
        code=3,
    )  # fmt: skip
    assert "apply.targets[3]: re:fc9" in message
    assert list(tmp_path.iterdir()) == []


def test_an_ignore_pattern_that_matches_nothing_exits_3(fails, dense, recipe):
    flags = ("--recipe", recipe, "--set", "apply.ignore=[nothing]")
    assert "apply.ignore[0]: nothing" in fails("inspect", dense, *flags, code=3)


def test_a_model_that_is_not_there_exits_4(fails, recipe, tmp_path):
    message = fails("inspect", tmp_path / "nowhere", "--recipe", recipe, code=4)
    assert "nowhere" in message


def test_a_hub_name_without_a_network_exits_4(fails):
    assert "no-such/model" in fails("inspect", "no-such/model", code=4)


def test_missing_weights_exit_4(fails, dense, copied, data):
    model = copied(dense)
    (model / "model.safetensors").unlink()
    assert str(model) in fails("eval", model, "--data", data, code=4)


@pytest.mark.parametrize("keep", [0, 7, 0.5, -1])
@pytest.mark.parametrize("made_by", ["transformers", "dynprune"])
def test_truncated_weights_exit_4(fails, dense, gated, copied, data, made_by, keep):
    model = copied(dense if made_by == "transformers" else gated)
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    assert str(model) in fails("eval", model, "--data", data, "--json", code=4)


def test_a_manifest_that_is_no_json_exits_4(fails, gated, copied, data):
    model = copied(gated)
    (model / "dynprune.json").write_text("{")
    assert "dynprune.json" in fails("eval", model, "--data", data, code=4)


def test_a_message_is_no_longer_than_a_user_reads(fails, gated, copied, data):
    model = copied(gated)
    manifest = json.loads((model / "dynprune.json").read_text())
    manifest["source"]["kind"] = "x" * 100_000
    (model / "dynprune.json").write_text(json.dumps(manifest))
    message = fails("eval", model, "--data", data, code=4)
    assert "characters more" in message
    assert len(message) < 1200


def test_a_recipe_without_weights_of_its_own_says_what_to_give(fails, tmp_path):
    message = fails("apply", "--recipe", "segformer-b0-camvid", "-o", tmp_path / "o", code=4)
    assert "no model.weights" in message
    assert "--weights random" in message


def test_a_factory_that_a_recipe_names_is_not_run(fails, recipe, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine.yaml"
    mine.write_text(recipe.read_text())
    flags = ("--set", "model={source: factory, factory: 'evil:make', input: [1, 3, 64, 64]}")
    message = fails("apply", "--recipe", mine, *flags, "-o", tmp_path / "o", code=2)
    assert "is never run" in message


def test_data_that_is_not_there_exits_4(fails, dense, tmp_path):
    assert "nowhere" in fails("eval", dense, "--data", tmp_path / "nowhere", code=4)


def test_an_unknown_split_exits_4(fails, dense, data):
    assert "test" in fails("eval", dense, "--data", data, "--split", "test", code=4)


@pytest.fixture
def bad_picture(data, copied):
    root = copied(data, "data")
    (root / "images" / "val" / "0.png").write_bytes(b"this is not a picture")
    return root


def test_a_picture_that_is_not_one_exits_4(fails, dense, bad_picture):
    assert "0.png" in fails("eval", dense, "--data", bad_picture, "--json", code=4)


def test_a_picture_that_is_not_one_leaves_no_half_of_the_output(
    fails, dense, bad_picture, tmp_path
):
    pictures = sorted((bad_picture / "images" / "val").iterdir(), reverse=True)
    output = tmp_path / "out"
    assert "0.png" in fails("predict", dense, *pictures, "-o", output, code=4)
    assert not output.exists()


def test_a_label_out_of_range_exits_4(fails, dense, data, copied):
    from PIL import Image

    root = copied(data, "data")
    label = root / "annotations" / "val" / "1.png"
    pixels = Image.open(label)
    pixels.putpixel((0, 0), 200)
    pixels.save(label)
    message = fails("eval", dense, "--data", root, code=4)
    assert "1.png" in message
    assert "200" in message


def commands_that_write(dense, recipe, data, output):
    flags = ("--recipe", recipe, "-o", output, "--device", "cpu")
    picture = next((data / "images" / "val").iterdir())
    yield ("apply", dense, *flags)
    yield ("distill", "--teacher", dense, "--data", data, *flags)
    yield ("predict", dense, picture, *flags)


@pytest.mark.parametrize("number", range(3), ids=["apply", "distill", "predict"])
def test_an_output_that_is_not_empty_exits_4(fails, dense, recipe, data, tmp_path, number):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    command = list(commands_that_write(dense, recipe, data, output))[number]
    assert "--overwrite" in fails(*command, code=4)
    assert [path.name for path in output.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("number", range(2), ids=["apply", "distill"])
def test_overwrite_replaces_nothing_that_is_not_ours(fails, dense, recipe, data, tmp_path, number):
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.tex").write_text("mine")
    command = list(commands_that_write(dense, recipe, data, output))[number]
    assert "thesis.tex" in fails(*command, "--overwrite", code=4)
    assert (output / "thesis.tex").read_text() == "mine"


def test_overwrite_replaces_an_earlier_model(run, dense, recipe, gated, copied):
    output = copied(gated)
    flags = ("--recipe", recipe, "-o", output, "--set", "sparsity.final=0.25", "--json")
    assert run("apply", dense, *flags, "--overwrite").document["keep_ratio"] == 0.75


def unwritable(tmp_path, kind):
    """An output that even root cannot write: below a file, or in a file system without files."""
    (tmp_path / "file").write_text("")
    return {"file": tmp_path / "file", "below": tmp_path / "file" / "out", "proc": "/proc/out"}[
        kind
    ]


@pytest.mark.parametrize("kind", ["file", "below", "proc"])
@pytest.mark.parametrize("number", range(3), ids=["apply", "distill", "predict"])
def test_an_output_that_cannot_be_written_exits_4(
    fails, dense, recipe, data, tmp_path, number, kind
):
    if kind == "proc" and not os.path.isdir("/proc/self"):
        pytest.skip("this system has no /proc")
    output = unwritable(tmp_path, kind)
    command = list(commands_that_write(dense, recipe, data, output))[number]
    assert str(output) in fails(*command, code=4)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_recipe_is_not_copied_where_it_cannot_be_written(fails, tmp_path):
    (tmp_path / "file").write_text("")
    fails("recipe", "copy", "demo", "-o", tmp_path / "file" / "r.yaml", code=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "segformer-b0", "--input-size", "512"], "HEIGHTxWIDTH"),
        (["inspect", "segformer-b0", "--weights", "best"], "not pretrained or random"),
        (["inspect", "segformer-b0", "--device", "tpu"], "is not auto, cpu"),
        (["inspect"], "Missing argument"),
        (["apply"], "Missing option"),
        (["inspect", "segformer-b0", "--frob"], "No such option"),
        (["frob"], "No such command"),
        (["eval", "m", "--data", "d", "--threads", "0"], "threads"),
    ],
)
def test_bad_usage_exits_2(run, arguments, message):
    outcome = run(*arguments, code=2)
    assert message in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["apply", "-o", "o"], "this needs a recipe"),
        (["apply", "--recipe", "demo", "--drop-dead", "-o", "o"], "on data; add --data"),
        (["inspect", "some/model", "--set", "a=1"], "there is none; add --recipe"),
        (["eval", "m", "--data", "d", "--fail-if", "miou"], "is not a key"),
        (["eval", "m", "--data", "d", "--fail-if", "miou<x"], "is not a key"),
        (["inspect", "segformer-b0", "--device", "cuda"], "--device cuda is not here"),
        (["distill", "--recipe", "demo", "--data", "d", "-o", "o", "--stage", "x"], "has features"),
    ],
)
def test_arguments_that_cannot_be_meant_exit_2(fails, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert message in fails(*arguments, code=2)


def test_a_gated_model_is_not_gated_again(fails, gated, tmp_path):
    assert "is gated already" in fails("apply", gated, "-o", tmp_path / "o", code=2)


def test_a_gated_model_is_no_teacher(fails, gated, data, tmp_path):
    flags = ("--data", data, "-o", tmp_path / "o")
    assert "must be the dense model" in fails("distill", "--teacher", gated, *flags, code=2)


def test_resume_needs_a_run(fails, dense, recipe, data, tmp_path):
    flags = ("--recipe", recipe, "--teacher", dense, "--data", data, "-o", tmp_path / "o")
    assert "there is no run" in fails("distill", *flags, "--resume", code=4)
    assert "give one" in fails("distill", *flags, "--resume", "--overwrite", code=2)


def test_another_recipe_does_not_resume_a_run(fails, run, dense, recipe, data, tmp_path):
    flags = ("--teacher", dense, "--data", data, "-o", tmp_path / "o", "--recipe", recipe)
    run("distill", *flags, "--device", "cpu", "--stage", "features")
    message = fails("distill", *flags, "--resume", "--set", "optimizer.lr=0.5", code=2)
    assert "lr" in message


def test_a_broken_bound_exits_5_after_the_result_is_shown(run, gated):
    outcome = run("report", "flops", gated, "--json", "--fail-if", "dense>0", code=5)
    dense = outcome.document["dense"]
    assert f"dense is {dense:g}, which is > 0" in outcome.err


def test_a_bound_that_holds_lets_the_command_succeed(run, gated):
    run("report", "flops", gated, "--json", "--fail-if", "pruned.executed.max > 1e12")


def test_a_bound_on_what_is_not_there_exits_2(run, gated):
    assert "pruned.analytic" in run("report", "flops", gated, "--fail-if", "x<1", code=2).err


@pytest.fixture
def broken(monkeypatch):
    """Make `recipe list` raise."""

    def raise_from(error):
        def names():
            raise error

        monkeypatch.setattr("dynprune.cli.recipe.recipe_names", names)

    return raise_from


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ZeroDivisionError("x / 0"), 1, "ZeroDivisionError: x / 0\nThis is a bug"),
        (GateError("no selection"), 1, "no selection"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("stopped after step 3"), 130, "stopped after step 3"),
        (OSError(errno.ENOSPC, "No space left on device", "a"), 4, "Free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 4, "a: Permission denied."),
        (MemoryError(), 4, "out of memory"),
    ],
)
def test_every_error_has_its_code_and_one_message(fails, broken, error, code, message):
    broken(error)
    assert message in fails("recipe", "list", code=code)


def test_a_bug_shows_its_traceback_on_demand(run, broken, monkeypatch):
    broken(ZeroDivisionError("x / 0"))
    monkeypatch.setattr(logging.getLogger("dynprune"), "level", logging.DEBUG)
    logging.getLogger("dynprune").manager._clear_cache()
    assert "Traceback" in run("recipe", "list", code=1).err


def test_a_reader_that_goes_away_is_no_error(run, broken):
    broken(BrokenPipeError())
    run("recipe", "list", code=0)


def test_numbers_that_are_none_are_null_in_json(capsys):
    from dynprune.cli.terminal import Terminal

    Terminal(json=True).result({"a": float("nan"), "b": [float("inf"), 1.0]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.0]}
