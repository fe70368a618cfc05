"""Products around a depthwise convolution work in planes, and values stay."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from dynprune.export.passes.movements import simplify_movements
from dynprune.export.passes.nchw import multiply_in_nchw

MOVES = {torch.ops.aten.permute.default, torch.ops.aten.transpose.int}


class Mixer(nn.Module):
    """A mixing feed-forward network on the tokens of one map, as gated layers compute it."""

    def __init__(self, *, bias: bool = True, reads_hidden_twice: bool = False) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6, bias=bias), nn.Linear(6, 4)
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.reads_hidden_twice = reads_hidden_twice

    def forward(self, image: Tensor) -> Tensor:
        _, _, height, width = image.shape
        tokens = image.flatten(2).transpose(1, 2)
        hidden = F.linear(tokens.squeeze(0), self.fc1.weight, self.fc1.bias).unsqueeze(0)
        maps = self.conv(hidden.transpose(1, 2).view(1, 6, height, width))
        active = F.gelu(maps.flatten(2).transpose(1, 2))
        y = F.linear(active.squeeze(0), self.fc2.weight, self.fc2.bias).unsqueeze(0)
        return y + hidden.mean() + active.mean() if self.reads_hidden_twice else y


@pytest.mark.parametrize("bias", [True, False])
def test_no_map_is_transposed_and_nothing_changes(bias: bool) -> None:
    model = Mixer(bias=bias).eval()
    program = traced(model)
    before = count_moves(program)
    multiply_in_nchw(program)
    assert count_moves(program) == before - 2
    assert_same(program, model)


def test_what_others_read_too_stays_as_tokens() -> None:
    model = Mixer(reads_hidden_twice=True).eval()
    program = traced(model)
    before = count_moves(program)
    multiply_in_nchw(program)
    assert count_moves(program) == before
    assert_same(program, model)


def traced(model: nn.Module) -> torch.export.ExportedProgram:
    sizes = ({2: Dim.AUTO, 3: Dim.AUTO},)
    program = torch.export.export(
        model, (torch.randn(1, 4, 5, 6),), dynamic_shapes=sizes, strict=False
    )
    return simplify_movements(program)


def count_moves(program: torch.export.ExportedProgram) -> int:
    return sum(node.target in MOVES for node in program.graph.nodes)


def assert_same(program: torch.export.ExportedProgram, model: nn.Module) -> None:
    for size in ((5, 6), (7, 3)):
        image = torch.randn(1, 4, *size)
        torch.testing.assert_close(program.module()(image), model(image))
