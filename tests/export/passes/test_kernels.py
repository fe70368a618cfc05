"""Averages become products and norms stand apart from sums, and values stay."""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dynprune.export.passes.kernels import choose_kernels

ATEN = torch.ops.aten


class Pooled(nn.Module):
    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tokens.mean(1), tokens.mean(-1), tokens.mean(1, keepdim=True)


class Normed(nn.Module):
    """A norm that alone reads a sum, or one beside another reader."""

    def __init__(self, *, is_residual: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.is_residual = is_residual

    def forward(self, tokens: Tensor) -> Tensor:
        total = tokens + tokens.flip(1)
        return self.norm(total) + total if self.is_residual else self.norm(total)


def test_the_mean_over_tokens_is_a_product_and_no_other_mean_is() -> None:
    program = chosen(Pooled())
    means = [n.args[1] for n in program.graph.nodes if n.target == ATEN.mean.dim]
    assert means == [[-1], [1]]
    assert ATEN.matmul.default in {node.target for node in program.graph.nodes}


def test_a_norm_that_alone_reads_a_sum_reads_it_in_another_shape() -> None:
    assert norm_axes(chosen(Normed(is_residual=False))) == 4


def test_a_norm_whose_sum_goes_on_stays() -> None:
    assert norm_axes(chosen(Normed(is_residual=True))) == 3


def chosen(model: nn.Module) -> ExportedProgram:
    """Rewrite the traced model, and compare what it computes at two lengths."""
    program = torch.export.export(
        model, (torch.randn(1, 6, 4),), dynamic_shapes=({1: Dim.AUTO},), strict=False
    )
    choose_kernels(program)
    for length in (6, 9):
        tokens = torch.randn(1, length, 4)
        torch.testing.assert_close(program.module()(tokens), model(tokens))
    return program


def norm_axes(program: ExportedProgram) -> int:
    (norm,) = [n for n in program.graph.nodes if n.target == ATEN.layer_norm.default]
    return norm.args[0].meta["val"].dim()
