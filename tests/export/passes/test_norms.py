"""Norms leave their scale and shift, and chosen rows their bias, to weights; values stay."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from dynprune.export.passes.norms import absorb_norms, scale_keys

ATEN = torch.ops.aten


class Host(nn.Module):
    """A norm that chosen rows of a linear read, and what else a test has read it."""

    def __init__(self, *beside: str, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.norm.weight.data = torch.tensor([0.0, -1.0, 2.0, 0.5, 1.0, 3.0, 1e-3, 1.0])
        self.norm.bias.data = torch.randn(8)
        self.linear = nn.Linear(8, 6, bias=bias)
        self.plain = nn.Linear(8, 3)
        self.convolution = nn.Conv2d(8, 4, 2, stride=2)
        self.padded = nn.Conv2d(8, 4, 3, padding=1)
        self.beside = beside

    def forward(self, tokens: Tensor) -> list[Tensor]:
        x = self.norm(tokens)
        index = tokens.mean(1)[:, :6].topk(3).indices
        value = tokens.mean(1).gather(1, index)
        out = [self.chosen(x, index, value)]
        image = x.view(1, 2, 3, 8).permute(0, 3, 1, 2)
        readers = {
            "plain": lambda: self.plain(x),
            "mean": lambda: x.mean(1),
            "convolution": lambda: self.convolution(image),
            "padded": lambda: self.padded(image),
            "residual": lambda: x + tokens,
            "channels": lambda: x.mean(-1),
        }
        return out + [readers[name]() for name in self.beside]

    def chosen(self, x: Tensor, index: Tensor, value: Tensor) -> Tensor:
        weight = self.linear.weight.index_select(0, index.flatten()).view(1, 3, -1)
        weight = weight * value[..., None]
        if self.linear.bias is None:
            return F.linear(x, weight.squeeze(0))
        bias = self.linear.bias.index_select(0, index.flatten()).view(1, 3) * value
        return F.linear(x, weight.squeeze(0), bias.squeeze(0))


class OtherBias(Host):
    """The bias is chosen by another index than the weight."""

    def chosen(self, x: Tensor, index: Tensor, value: Tensor) -> Tensor:
        weight = self.linear.weight.index_select(0, index.flatten())
        return F.linear(x, weight, self.linear.bias.index_select(0, index.flip(1).flatten()))


@pytest.mark.parametrize("bias", [False, True])
def test_chosen_rows_bring_their_bias_along(*, bias: bool) -> None:
    model = Host("plain", "mean", "convolution", bias=bias)
    linears = readers_of_rows(absorbed(model))
    assert [len(node.args) for node in linears] == [2]


@pytest.mark.parametrize("beside", ["padded", "residual", "channels"])
def test_a_norm_that_another_kind_reads_too_stays(beside: str) -> None:
    assert norms(absorbed(Host(beside))) == ["p_norm_weight"]


def test_a_bias_of_other_rows_stays() -> None:
    assert norms(absorbed(OtherBias())) == ["p_norm_weight"]


def test_a_norm_that_no_chosen_rows_read_stays() -> None:
    class Plain(Host):
        def forward(self, tokens: Tensor) -> list[Tensor]:
            return [self.plain(self.norm(tokens))]

    assert norms(absorbed(Plain())) == ["p_norm_weight"]


def test_a_constant_token_is_no_worse_off() -> None:
    """Its norm is what the shift makes of it: the rest is zero, not merely small."""
    model = Host()
    program = absorbed(model)
    tokens = torch.full((1, 6, 8), 3.0)
    for got, want in zip(program.module()(tokens), model(tokens), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("scale", [None, 0.7])
def test_chosen_keys_carry_attentions_scale(scale: float | None) -> None:
    class Attention(Host):
        def forward(self, tokens: Tensor) -> list[Tensor]:
            x = self.norm(tokens)
            index = tokens.mean(1)[:, :6].topk(3).indices
            key = self.chosen(x, index, index.float() + 1)
            query = self.chosen(x, index, index.float())
            parts = (part[:, None] for part in (query, key, tokens))
            return [F.scaled_dot_product_attention(*parts, scale=scale)]

    model = Attention()
    program = absorbed(model)
    scale_keys(program)
    (attention,) = found(program, ATEN.scaled_dot_product_attention.default)
    assert attention.kwargs["scale"] == 1.0
    tokens = torch.randn(1, 6, 8)
    torch.testing.assert_close(program.module()(tokens), model(tokens))


def test_keys_that_were_not_chosen_keep_the_scale() -> None:
    class Attention(Host):
        def forward(self, tokens: Tensor) -> Tensor:
            part = self.plain(self.norm(tokens))[:, None]
            return F.scaled_dot_product_attention(part, part, part, scale=0.7)

    program = absorbed(Attention())
    scale_keys(program)
    (attention,) = found(program, ATEN.scaled_dot_product_attention.default)
    assert math.isclose(attention.kwargs["scale"], 0.7)


def absorbed(model: nn.Module) -> ExportedProgram:
    """Rewrite the traced model, and compare what it computes."""
    program = torch.export.export(model.eval(), (torch.randn(1, 6, 8),), strict=False)
    absorb_norms(program)
    tokens = torch.randn(1, 6, 8)
    torch.testing.assert_close(program.module()(tokens), model(tokens))
    return program


def found(program: ExportedProgram, target: object) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.target == target]


def norms(program: ExportedProgram) -> list[str]:
    """Name what every norm is scaled by."""
    return [node.args[2].name for node in found(program, ATEN.layer_norm.default)]


def readers_of_rows(program: ExportedProgram) -> list[fx.Node]:
    """Return the linears whose weight was chosen, a squeeze before them."""
    linears = found(program, ATEN.linear.default)
    return [node for node in linears if node.args[1].target == ATEN.squeeze.dim]
