"""Movements around convolutions become changes of layout, and values stay."""

import torch
from torch import Tensor, nn
from torch.export import Dim

from dynprune.export.passes.movements import simplify_movements


class TokenConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        maps = (tokens + 1).transpose(1, 2).view(batch, 4, height, width)
        same = self.conv(maps).reshape(batch, 4, height, width)
        back = same.flatten(2).transpose(1, 2)
        return back + same.reshape(batch, 4, -1).permute(0, 2, 1)


def test_no_transpose_of_tokens_is_left_and_nothing_changes() -> None:
    model, x = TokenConvolution().eval(), torch.randn(1, 4, 5, 6)
    sizes = ({2: Dim.AUTO, 3: Dim.AUTO},)
    program = torch.export.export(model, (x,), dynamic_shapes=sizes, strict=False)
    simplify_movements(program)
    targets = [node.target for node in program.graph.nodes]
    assert torch.ops.aten.transpose.int not in targets
    assert targets.count(torch.ops.aten.permute.default) == 4
    for size in ((5, 6), (7, 3)):
        y = torch.randn(1, 4, *size)
        assert torch.equal(program.module()(y), model(y))
