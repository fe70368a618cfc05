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
        (("--format", "onnx", "--precision", "int8"), 2, "fp32"),
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
