"""An ONNX file computes what the gated model computes, on inputs of any size."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ViTConfig, ViTForImageClassification

from dynprune.errors import OutputError, UsageError
from dynprune.example import Example
from dynprune.export import onnx as exporter
from dynprune.export.onnx import export_onnx, halved, onnx_runner
from dynprune.export.program import compact
from dynprune.export.record import Export
from dynprune.gate import GateConfig, gate_model, gates, recording
from dynprune.graph import find_groups
from dynprune.measure.macs import without_gates

from .conftest import SIZES, assert_close, expected, pictures, stir_predictors


@pytest.fixture(scope="module")
def exported(
    gated: nn.Module, example: Example, tmp_path_factory: pytest.TempPathFactory
) -> Export:
    return export_onnx(gated, example, tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.mark.parametrize("size", SIZES)
def test_the_file_agrees_with_the_model_at_every_size(
    gated: nn.Module, exported: Export, size: tuple[int, int]
) -> None:
    run = onnx_runner(exported.path)
    x = pictures(*size, seed=3)
    assert_close(run([x]), expected(gated, x))


def test_every_instance_of_a_batch_is_computed_by_its_own_neurons(
    gated: nn.Module, exported: Export
) -> None:
    x = pictures(97, 131, batch=3, seed=1)
    with recording() as seen:
        wanted = expected(gated, x)
    for (found,) in seen.values():
        assert not torch.equal(found.selection.keep[0], found.selection.keep[2])
    run = onnx_runner(exported.path)
    assert_close(run([x]), wanted)
    assert_close(torch.cat([run([one]) for one in x.split(1)]), wanted)


def test_the_file_chooses_neurons_inside(exported: Export) -> None:
    graph = onnx.load(exported.path).graph
    (loop,) = [node for node in graph.node if node.op_type == "Loop"]
    kinds = {node.op_type for node in loop.attribute[0].g.node}
    assert {"TopK", "Gather"} <= kinds


def test_the_record_says_what_was_checked(exported: Export) -> None:
    record = exported.to_json()
    assert record["output"] == str(exported.path)
    assert record["inputs"] == {"pixel_values": ["batch", 3, "height", "width"]}
    assert len(record["checked"]) >= 4
    assert 0 < record["max_error"] <= 1e-4


def test_half_precision_weights_halve_the_file(
    gated: nn.Module, exported: Export, tmp_path: Path
) -> None:
    half = tmp_path / "half.onnx"
    onnx.save(halved(onnx.load(exported.path)), half)
    weights = sum(p.numel() for p in without_gates(gated).parameters())
    assert exported.path.stat().st_size - half.stat().st_size > weights  # two bytes each, at least
    x = pictures(97, 131, batch=2, seed=4)
    wanted = expected(gated, x)
    assert (onnx_runner(half)([x]) - wanted).abs().max() <= 2e-2 * wanted.abs().max()


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 2, 1)

    def forward(self, picture: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(picture)))


def test_a_dense_model_takes_a_batch_without_a_loop(tmp_path: Path) -> None:
    dense = Convolutions().eval()
    made = export_onnx(dense, Example((pictures(64, 64),)), tmp_path / "dense.onnx")
    assert made.inputs == {"picture": ("batch", 3, "height", "width")}
    assert "Loop" not in {node.op_type for node in onnx.load(made.path).graph.node}
    x = pictures(97, 131, batch=3)
    with torch.no_grad():
        assert_close(onnx_runner(made.path)([x]), dense(x))


def test_a_text_model_keeps_its_keywords_and_its_open_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    ids = torch.randint(0, 50, (1, 16))
    example = Example((), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    groups = find_groups(model, example).candidates
    gate_model(model, example, groups, {g.name: GateConfig(prune_ratio=0.5) for g in groups})
    stir_predictors(model)
    made = export_onnx(model, example, tmp_path / "bert.onnx")
    assert made.inputs == {
        "input_ids": ("batch", "length"),
        "attention_mask": ("batch", "length"),
    }
    assert made.max_error <= 1e-4


def test_a_model_of_one_picture_size_keeps_that_size(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=3,
    )
    model = ViTForImageClassification(config).eval()
    made = export_onnx(model, Example((torch.randn(1, 3, 32, 32),)), tmp_path / "vit.onnx")
    assert made.inputs == {"pixel_values": ("batch", 3, 32, 32)}


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exporter.TOLERANCES, "fp16", 0.0)
    example = Example((pictures(64, 64),))
    with pytest.raises(OutputError, match=r"differs from the model by .* nothing was written"):
        export_onnx(Convolutions(), example, tmp_path / "model.onnx", precision="fp16")
    assert list(tmp_path.iterdir()) == []


class Unexportable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x


def test_a_model_that_cannot_be_traced_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unexportable cannot be exported"):
        export_onnx(Unexportable(), Example((torch.ones(1, 2),)), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_export_leaves_the_model_as_it_was(gated: nn.Module, exported: Export) -> None:
    assert {gate.requested for gate in gates(gated).values()} == {"compact"}
    gated.train()
    with compact(gated):
        assert not gated.training
        assert all(gate.running == gate.verified for gate in gates(gated).values())
    assert all(module.training for module in gated.modules())
    gated.eval()


def test_the_file_tells_nothing_of_the_machine_it_was_made_on(exported: Export) -> None:
    content = exported.path.read_bytes()
    assert str(Path(torch.__file__).parents[1]).encode() not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_a_file_of_fixed_size_holds_no_loop_and_takes_that_size_alone(
    gated: nn.Module, example: Example, tmp_path: Path
) -> None:
    made = export_onnx(gated, example, tmp_path / "fixed.onnx", fixed_size=True)
    assert made.inputs == {"pixel_values": (1, 3, 64, 64)}
    assert made.checked == ((1, 3, 64, 64),)
    assert not [n for n in onnx.load(made.path).graph.node if n.op_type == "Loop"]
    run = onnx_runner(made.path)
    x = pictures(64, 64, seed=5)
    assert_close(run([x]), expected(gated, x))
    with pytest.raises(Exception, match="invalid dimensions"):
        run([pictures(96, 64)])


def test_a_batch_of_fixed_size_holds_no_loop_either(gated: nn.Module, tmp_path: Path) -> None:
    x = pictures(64, 64, batch=2, seed=5)
    made = export_onnx(gated, Example((x,)), tmp_path / "batch.onnx", fixed_size=True)
    assert made.inputs == {"pixel_values": (2, 3, 64, 64)}
    assert not [n for n in onnx.load(made.path).graph.node if n.op_type == "Loop"]
    assert_close(onnx_runner(made.path)([x]), expected(gated, x))
