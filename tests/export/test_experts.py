"""Files choose experts as the model does, for every token or every input, at any batch."""

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.gate import GateConfig, plan_groups
from dynprune.gate.route import Experts, put_experts
from dynprune.graph import find_groups


class Block(nn.Module):
    """A hidden layer on tokens, with logits."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


@pytest.fixture(params=["instance", "token"])
def routed(request):
    torch.manual_seed(0)
    model, example = nn.Sequential(Block()).eval(), Example((torch.randn(2, 12, 16),))
    groups = find_groups(model, example).groups
    plans = plan_groups(model, example, groups, {g.name: GateConfig(order="fixed") for g in groups})
    index = torch.rand(3, 64).topk(32).indices.sort(1).values
    own = Experts(index, torch.randn(3, 16), torch.ones(16), {}, request.param)
    put_experts(model, plans, {plans[0].group.name: own})
    return model, example


def test_an_onnx_file_answers_as_the_model_does(routed, tmp_path):
    pytest.importorskip("onnxruntime")
    from dynprune.export.onnx import export_onnx

    written = export_onnx(*routed, tmp_path / "m.onnx")
    assert written.max_error < 1e-4
    assert next(iter(written.inputs.values()))[0] == "batch"


def test_an_openvino_file_answers_as_the_model_does(routed, tmp_path):
    pytest.importorskip("openvino")
    from dynprune.export.openvino import export_openvino

    assert export_openvino(*routed, tmp_path / "m.xml").max_error < 1e-4
