"""An int8 file computes nearly what its model computes, in int8, or says which product does not."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from dynprune.errors import OutputError, UsageError
from dynprune.example import Example
from dynprune.export import int8
from dynprune.export.int8 import Calibration, quantised
from dynprune.export.onnx import export_onnx, onnx_model
from dynprune.export.openvino import export_openvino
from dynprune.export.precision import fallen, in_onnxruntime, products_with, pruned_layers
from dynprune.export.products import gathered_of, products_of
from dynprune.export.quantiser import quantise
from dynprune.export.record import Export

from .conftest import pictures, tiny_segformer

pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return tiny_segformer()


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration([Example((pictures(64, 64, seed=seed),)) for seed in range(4)])


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def written(
    request: pytest.FixtureRequest,
    dense: nn.Module,
    calibration: Calibration,
    example: Example,
    tmp_path_factory: pytest.TempPathFactory,
) -> Export:
    write: Any = {"onnx": export_onnx, "openvino": export_openvino}[request.param]
    name = {"onnx": "model.onnx", "openvino": "model.xml"}[request.param]
    place = tmp_path_factory.mktemp(request.param) / name
    return write(dense, example, place, precision="int8", calibration=calibration)


def test_every_product_that_was_not_left_out_runs_in_int8(written: Export) -> None:
    assert len(written.products) > 15
    ran = {product.layer: product.precision for product in written.products}
    inside = {layer for layer in ran if layer not in written.left_out}
    # Engines may merge a layer with its norm under a name of their own, and do not tell then.
    assert [ran[layer] for layer in inside].count(None) <= 1
    assert {ran[layer] for layer in inside} <= {"int8", None}
    assert {ran[layer] for layer in written.left_out} <= {"fp32"}


def test_products_bear_the_names_of_their_layers(written: Export, dense: nn.Module) -> None:
    layers = {product.layer.partition("@")[0] for product in written.products}
    weighted = {n for n, m in dense.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert layers == weighted


def test_what_makes_the_logits_stays_in_float32(written: Export) -> None:
    assert "decode_head.classifier" in written.left_out


def test_the_file_computes_nearly_what_the_model_computes(written: Export) -> None:
    assert 1e-5 < written.max_error < 0.3  # random weights: eight bits after eight bits
    assert len(set(written.checked)) >= 4


def test_openvino_leaves_depthwise_convolutions_out_and_says_so(
    dense: nn.Module, written: Export
) -> None:
    depthwise = {
        name for name, m in dense.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1
    }
    assert depthwise <= set(written.left_out) or written.format == "onnx"
    assert any("left in fp32 on purpose" in note for note in written.warnings())


def test_a_gated_model_is_refused_with_the_reason(
    gated: nn.Module, calibration: Calibration, example: Example, tmp_path: Path
) -> None:
    for write, name in ((export_onnx, "m.onnx"), (export_openvino, "m.xml")):
        with pytest.raises(UsageError, match=r"gathered ones in fp32.*choose=fixed"):
            write(gated, example, tmp_path / name, precision="int8", calibration=calibration)
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_calibration_is_refused(
    dense: nn.Module, example: Example, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="add --data"):
        export_onnx(dense, example, tmp_path / "m.onnx", precision="int8")


def test_an_int8_file_in_which_gated_products_fell_back_is_caught(
    gated: nn.Module, calibration: Calibration, example: Example, tmp_path: Path
) -> None:
    proto, _ = onnx_model(gated, example, target="onnxruntime", fixed_size=True)
    source, target = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    onnx.save(proto, source)
    names = products_of(proto)
    gathered = {name: names[name] for name in gathered_of(proto)}
    assert gathered
    quantise(source, target, calibration.calls, "onnxruntime", leave_out=gathered)
    products = products_with(in_onnxruntime(target, names), names, pruned_layers(gated))
    assert {product.precision for product in products} == {"fp32", "int8"}
    back = {product.layer for product in fallen(products, "int8") if product.pruned}
    assert back
    assert back <= gathered.keys()
    record = Export(target, "onnx", "int8", {}, (), 0.0, products)
    assert any("not in int8" in note and "pruned" in note for note in record.warnings())


class Quantisers:
    """Stands for a quantiser: int8 costs a point for every product that is quantised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, products: dict[str, str]) -> None:
        self.products = products
        self.tried: list[tuple[str, ...]] = []
        monkeypatch.setattr(int8, "quantise", self)

    def __call__(self, *_: Any, leave_out: dict[str, str], **__: Any) -> None:
        self.tried.append(tuple(leave_out))

    def score(self, path: Path) -> float:
        quantised = len(self.products) - len(self.tried[-1]) if path.name == "int8" else 0
        return 1 - quantised / 100


def test_fragile_products_are_left_out_until_the_bound_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    products = {f"p{i}": f"made {i}" for i in range(20)}
    fake = Quantisers(monkeypatch, products)
    asked = Calibration([Example((torch.zeros(1),))], fake.score, 0.165)
    made = quantised(Path("plain"), Path("int8"), products, asked, "nncf")
    assert made.left_out == ("p0", "p1", "p18", "p19")
    assert made.accuracy is not None
    assert made.accuracy["lost"] == pytest.approx(0.16)
    assert [len(left) for left in fake.tried] == [1, 2, 4]


def test_a_bound_that_cannot_be_held_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    products = {f"p{i}": f"made {i}" for i in range(20)}
    fake = Quantisers(monkeypatch, products)
    asked = Calibration([Example((torch.zeros(1),))], fake.score, 0.001)
    with pytest.raises(OutputError, match=r"--accuracy-drop 0\.001.*nothing was written"):
        quantised(Path("plain"), Path("int8"), products, asked, "nncf")


def test_what_a_quantiser_says_is_told_and_a_file_that_it_cannot_read_is_no_traceback(
    tmp_path: Path,
) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"nothing")
    with pytest.raises(OutputError, match="cannot quantise this model"):
        quantise(source, tmp_path / "int8.onnx", [], "onnxruntime")
