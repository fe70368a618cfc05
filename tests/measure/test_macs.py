"""The report's counts follow from the groups' shares, and the model runs what they say."""

import copy

import pytest
import torch
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from dynprune.example import Example
from dynprune.gate import GateConfig, gate_model, gates
from dynprune.graph.groups import find_groups
from dynprune.graph.neurons import Axis, MacNode
from dynprune.measure.executed import executed
from dynprune.measure.macs import analytic, macs_report, parameter_count, without_gates
from dynprune.rewrite import rewrite, undo

TINY = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [16, 32, 48, 64],
    "decoder_hidden_size": 32,
    "num_labels": 5,
}


def pruned_segformer(prune_ratio: float, *, align: int = 8, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig(**settings)).eval()
    example = Example((torch.randn(1, 3, 64, 64),))
    rewrite(model, example, ["fold-decoder"])
    groups = find_groups(model, example).candidates
    config = GateConfig(prune_ratio=prune_ratio, align=align)
    gate_model(model, example, groups, {group.name: config for group in groups})
    return model


def test_a_product_shrinks_by_both_of_its_axes() -> None:
    half_a, all_b = Axis((("a", 0.5),)), Axis((("b", 1.0),))
    costs = [
        MacNode("up", "linear", 1000, out=half_a),
        MacNode("mix", "depthwise", 100, out=half_a),
        MacNode("down", "linear", 1000, out=all_b, contraction=half_a),
        MacNode("down", "qk", 10, contraction=all_b),
    ]
    keep = {"a": 0.6, "b": 0.5}
    a, b = 1 - 0.5 * 0.4, 0.5
    assert analytic(costs, keep, {"a": "compact", "b": "compact"}) == {
        "up": round(1000 * a),
        "mix": round(100 * a),
        "down": round(1000 * a * b + 10 * b),
    }


def test_only_linears_save_in_scatter_and_nothing_saves_in_masked_execution() -> None:
    share = Axis((("a", 1.0),))
    costs = [
        MacNode("up", "linear", 1000, out=share),
        MacNode("mix", "depthwise", 100, out=share),
        MacNode("down", "conv", 1000, contraction=share),
        MacNode("head", "qk", 10, contraction=share),
    ]
    saved = {"up": 500, "mix": 100, "down": 500, "head": 10}
    assert analytic(costs, {"a": 0.5}, {"a": "scatter"}) == saved
    for mode in ("masked", "refused"):
        dense = {"up": 1000, "mix": 100, "down": 1000, "head": 10}
        assert analytic(costs, {"a": 0.5}, {"a": mode}) == dense


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    return pruned_segformer(0.5, **TINY)


@pytest.mark.parametrize(("size", "batch"), [((128, 128), 1), ((97, 131), 2)])
def test_formula_and_execution_agree(tiny: nn.Module, size: tuple[int, int], batch: int) -> None:
    report = macs_report(tiny, Example((torch.randn(batch, 3, *size),)))
    assert report.analytic == pytest.approx(report.executed.mean, rel=0.01)
    assert report.analytic < report.rewritten < report.dense
    assert report.analytic == sum(layer.pruned for layer in report.layers)
    assert report.dense == sum(layer.dense for layer in report.layers)


def test_the_counted_forms_are_the_models_that_come_back(tiny: nn.Module) -> None:
    example = Example((torch.randn(1, 3, 64, 64),))
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    report = macs_report(tiny, example)
    rewritten = without_gates(tiny)
    assert report.rewritten == executed(rewritten, example)
    dense = undo(copy.deepcopy(rewritten))
    assert report.dense == executed(dense, example)
    assert report.dense_parameters == parameter_count(dense)
    extra = sum(p.numel() for gate in gates(tiny).values() for p in gate.parameters())
    assert report.pruned_parameters == parameter_count(rewritten) + extra
    after = tiny.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_every_gate_costs_its_predictor_once_an_instance(tiny: nn.Module) -> None:
    report = macs_report(tiny, Example((torch.randn(3, 3, 64, 64),)))
    layers = {layer.name: layer for layer in report.layers}
    for name, gate in gates(tiny).items():
        predictor = gate.predictor
        assert predictor is not None
        macs = 3 * (predictor.down.weight.numel() + predictor.up.weight.numel())
        assert layers[f"{name} (gate)"].pruned == macs
        assert layers[f"{name} (gate)"].dense == 0


def test_the_document_has_the_keys_that_scripts_rely_on(tiny: nn.Module) -> None:
    calls = [Example((torch.randn(1, 3, 64, 64),)) for _ in range(2)]
    document = macs_report(tiny, calls[0], calls).to_json()
    assert list(document) == [
        *(
            "unit",
            "input",
            "dense",
            "rewritten",
            "pruned",
            "params",
            "layers",
            "uncounted",
            "masked",
        ),
    ]
    assert document["unit"] == "MAC"
    assert document["input"] == [1, 3, 64, 64]
    ran = document["pruned"]["executed"]
    assert ran["min"] <= ran["mean"] <= ran["max"]
    assert set(document["layers"][0]) == {"name", "dense", "pruned"}


@pytest.mark.parametrize(("prune_ratio", "most"), [(0.3, 3.4e9), (0.5, 2.85e9)])
def test_segformer_b0_is_pruned_to_the_published_cost(prune_ratio: float, most: float) -> None:
    b0 = {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 160, 256], "num_labels": 150}
    model = pruned_segformer(prune_ratio, align=16, **b0)
    assert executed(model, Example((torch.randn(1, 3, 512, 512),))) <= most


def test_a_model_without_gates_or_rewrites_costs_the_same_in_every_form() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    report = macs_report(model, Example((torch.randn(3, 4),)))
    macs = 3 * (32 + 16)
    assert (report.dense, report.rewritten, report.analytic) == (macs, macs, macs)
    assert report.executed.mean == macs
    assert report.dense_parameters == report.pruned_parameters == 58
