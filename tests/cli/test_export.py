"""`dynprune export`: from a model to a file that an engine runs."""

import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.mark.parametrize(("engine", "name"), [("onnx", "m.onnx"), ("openvino", "m.xml")])
def test_a_gated_model_becomes_a_file_that_was_checked_at_several_sizes(
    run, gated, tmp_path, engine, name
):
    out = tmp_path / name
    record = run("export", gated, "--format", engine, "-o", out, "--json").document
    assert record["output"] == str(out)
    assert out.is_file()
    assert record["max_error"] < 1e-4
    assert len({tuple(shape) for shape in record["checked"]}) >= 4


def test_four_stages_at_the_published_size_are_exported(run, tmp_path):
    """Deep strides put conditions on the open sizes, which small models do not show."""
    import onnxruntime

    out = tmp_path / "b0.onnx"
    changes = ("--set", "apply.gate.start=fresh", "--set", "model.input=[1, 3, 192, 256]")
    run("export", "segformer-b0", "--weights", "random", *changes, "--format", "onnx", "-o", out)
    session = onnxruntime.InferenceSession(str(out))
    (name,) = (entry.name for entry in session.get_inputs())
    (logits,) = session.run(None, {name: torch.randn(2, 3, 97, 131).numpy()})
    assert logits.shape == (2, 150, 25, 33)


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (("--format", "tflite"), 2, "onnx or openvino"),
        (("--format", "onnx", "--precision", "int8"), 2, "add --data"),
        (("--format", "onnx", "--precision", "fp32", "--subset", "4"), 2, "--subset is for"),
        (("--format", "openvino", "--precision", "int4"), 2, "fp32"),
    ],
)
def test_an_unknown_format_or_precision_is_refused(run, gated, tmp_path, options, code, word):
    result = run("export", gated, *options, "-o", tmp_path / "m.onnx", code=code)
    assert word in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept(run, gated, tmp_path):
    out = tmp_path / "m.onnx"
    out.write_text("mine")
    run("export", gated, "--format", "onnx", "-o", out, code=4)
    assert out.read_text() == "mine"


def test_a_file_is_evaluated_and_predicts_as_its_model_does(run, gated, data, tmp_path):
    out = tmp_path / "m.onnx"
    run("export", gated, "--format", "onnx", "-o", out)
    wanted = run("eval", gated, "--data", data, "--json").document
    found = run("eval", out, "--data", data, "--json").document
    assert found.keys() == wanted.keys()
    assert found["preprocessing"] == wanted["preprocessing"]
    assert abs(found["miou"] - wanted["miou"]) < 1e-3
    picture = data / "images" / "val" / "0.png"
    both = {}
    for name, model in (("file", out), ("model", gated)):
        run("predict", model, picture, "-o", tmp_path / name)
        both[name] = (tmp_path / name / "0_labels.png").read_bytes()
    assert both["file"] == both["model"]


def test_a_file_that_is_missing_or_for_another_device_is_refused(run, data, tmp_path):
    err = run("eval", tmp_path / "m.onnx", "--data", data, code=4).err
    assert "no file" in err


def test_a_model_with_fixed_groups_becomes_an_int8_file(run, dense, recipe, data, tmp_path):
    pytest.importorskip("nncf")
    out = tmp_path / "m.onnx"
    changes = ("--recipe", recipe, "--set", "apply.gate.choose=fixed")
    options = ("--format", "onnx", "--precision", "int8", "--data", data, "--accuracy-drop", 1)
    record = run("export", dense, *changes, *options, "-o", out, "--json").document
    assert record["precision"] == "int8"
    assert {p["precision"] for p in record["products"] if p["pruned"]} == {"int8"}
    assert record["accuracy"].keys() == {"fp32", "int8", "lost"}
    assert run("eval", out, "--data", data, "--json").document["images"] == 2
