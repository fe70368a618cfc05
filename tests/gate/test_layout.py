"""Layers are told apart by what they compute, and keep what host code reads of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.errors import GateError
from dynprune.example import Example
from dynprune.gate.layout import weight_layout
from dynprune.gate.linear import DynamicLinear
from dynprune.graph import find_groups
from tests.gate.zoo_laws import ROUNDING, difference, gate_all
from tests.graph.adversaries import TwoLinears


class OwnLinear(nn.Module):
    """A linear as people write it by hand."""

    def __init__(self, inputs: int, outputs: int, transposed: bool, way: str = "matmul") -> None:
        super().__init__()
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        self.weight, self.bias = (
            nn.Parameter(torch.randn(shape)),
            nn.Parameter(torch.randn(outputs)),
        )
        self.transposed, self.way = transposed, way

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.transposed else self.weight.t()
        if self.way == "linear":
            return F.linear(x, weight.t(), self.bias)
        if self.way == "twice":
            return x @ weight + 2 * self.bias
        return x @ weight + self.bias


class OwnMlp(TwoLinears):
    def __init__(self, hidden: int, transposed: bool, way: str) -> None:
        super().__init__()
        self.fc1 = OwnLinear(8, hidden, transposed, way)
        self.fc2 = OwnLinear(hidden, 8, transposed, way)


@pytest.mark.parametrize("hidden", [8, 16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("way", ["matmul", "linear"])
def test_a_linear_written_by_hand_is_gated_like_torch_s(hidden, transposed, way):
    """Square weights too, whose shape does not tell how they are stored."""
    model, call = OwnMlp(hidden, transposed, way).eval(), Example((torch.randn(1, 6, 8),))
    (plan,) = gate_all(model, call).plans
    assert plan.mode == "compact", plan.reason
    assert model.fc1.layout == ("transposed" if transposed else "linear")
    assert difference(model, call.batched(3)) < ROUNDING


def test_a_bias_that_is_not_just_added_is_no_linear_layer():
    call = Example((torch.randn(1, 6, 8),))
    (group,) = find_groups(OwnMlp(16, False, "twice").eval(), call).groups
    assert group.reason is not None
    with pytest.raises(GateError, match="something else than its weight and bias"):
        weight_layout(OwnLinear(8, 8, False, "twice"))


def test_host_code_may_read_the_sizes_of_the_layer_it_knew():
    class Padding(nn.Module):
        """Pads by what its convolutions say of themselves, as MobileNet does."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            for conv in (self.conv1, self.conv2):
                pad = conv.kernel_size[0] - conv.stride[0]
                x = F.relu(conv(F.pad(x, [pad] * 4)) * conv.in_channels / conv.out_channels)
            return x

    model, call = Padding().eval(), Example((torch.randn(1, 8, 5, 5),))
    (plan,) = gate_all(model, call).plans
    assert plan.mode == "compact", plan.reason
    assert isinstance(model.conv1, DynamicLinear)
    assert difference(model, call.batched(3)) < ROUNDING
