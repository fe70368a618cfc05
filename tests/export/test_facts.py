"""A file for an engine says itself how pictures go in, and is evaluated and refused by that."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from dynprune.data import LabelValues, Preprocessing, Resize
from dynprune.errors import InputError
from dynprune.example import Example
from dynprune.export.engine_file import is_engine_file, open_engine_file
from dynprune.export.facts import KEY, FileFacts
from dynprune.export.onnx import export_onnx
from dynprune.export.openvino import export_openvino

FACTS = FileFacts(
    classes=("sky", "sea", "land"),
    preprocessing=Preprocessing(
        [0.1, 0.2, 0.3], [1.0, 2.0, 3.0], Resize(height=32, width=48), [16, 16], None
    ),
    values=LabelValues((0, 255), reduce=True, mapping={7: 1}),
    processor={"do_resize": True, "size": {"height": 32, "width": 48}},
)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.conv(picture)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module", params=["onnx", "xml"])
def path(
    request: pytest.FixtureRequest, model: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    place: Path = tmp_path_factory.mktemp("facts") / f"m.{request.param}"
    write = export_onnx if request.param == "onnx" else export_openvino
    write(model, Example((torch.randn(1, 3, 16, 24),)), place, fixed_size=True, facts=FACTS)
    return place


def test_facts_travel_in_the_file(path: Path) -> None:
    loaded, facts = open_engine_file(path)
    assert facts == FACTS
    assert loaded.classes == FACTS.classes
    assert loaded.processor == FACTS.processor


def test_the_file_runs_as_the_model_does(path: Path, model: nn.Module) -> None:
    loaded, _ = open_engine_file(path, threads=1)
    x = torch.randn(1, 3, 16, 24)
    assert torch.allclose(loaded.module(x), model(x), atol=1e-5)


def test_a_picture_of_another_size_is_refused_with_advice(path: Path) -> None:
    loaded, _ = open_engine_file(path)
    with pytest.raises(InputError, match=r"1x3x8x8.*--fixed-size"):
        loaded.module(torch.randn(1, 3, 8, 8))


def test_a_file_without_facts_is_refused(model: nn.Module, tmp_path: Path) -> None:
    export_onnx(model, Example((torch.randn(1, 3, 16, 24),)), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="does not say how pictures go in"):
        open_engine_file(tmp_path / "m.onnx")


RECORD = json.loads(FACTS.to_text())


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        json.dumps({**RECORD, "more": 1}),
        json.dumps({**RECORD, "mean": [1.0]}),
        json.dumps({**RECORD, "classes": "sky"}),
        json.dumps({**RECORD, "mapping": {"a": 1}}),
        json.dumps({k: v for k, v in RECORD.items() if k != "std"}),
    ],
)
def test_damaged_facts_are_refused(model: nn.Module, tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"m\.onnx says of itself .* is damaged"):
        FileFacts.from_text(text, tmp_path / "m.onnx")


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        open_engine_file(tmp_path / "m.onnx")
    for name, engine in (("m.onnx", "onnxruntime"), ("m.xml", "OpenVINO")):
        (tmp_path / name).write_bytes(b"nothing at all")
        with pytest.raises(InputError, match=f"{engine} cannot read"):
            open_engine_file(tmp_path / name)


def test_foreign_metadata_is_no_fact_of_ours(path: Path, model: nn.Module, tmp_path: Path) -> None:
    if path.suffix != ".onnx":
        pytest.skip("of ONNX")
    proto = onnx.load(path)
    helper.set_model_props(proto, {"author": "somebody"})
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=KEY):
        open_engine_file(tmp_path / "m.onnx")


def test_files_are_told_by_their_suffix(tmp_path: Path) -> None:
    assert is_engine_file("a/b.onnx")
    assert is_engine_file("b.xml")
    assert not is_engine_file("b")
    (tmp_path / "dir.onnx").mkdir()
    assert not is_engine_file(str(tmp_path / "dir.onnx"))
