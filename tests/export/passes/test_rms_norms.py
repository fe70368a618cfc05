"""Norms of what can lose its mean beforehand divide by the root mean square; values stay."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from dynprune.export.passes.rms_norms import norms_to_rms_norms

ATEN = torch.ops.aten
CHANNELS = 8


class Host(nn.Module):
    """A residual stream that begins with a norm of an embedded picture, and ends in a norm."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, CHANNELS, 2, stride=2)
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(blocks + 2))
        for norm in self.norms:
            norm.weight.data = torch.randn(CHANNELS)
            norm.bias.data = torch.randn(CHANNELS)
        self.linears = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(blocks))
        self.position = nn.Parameter(torch.randn(1, 1, CHANNELS))

    def forward(self, picture: Tensor) -> Tensor:
        tokens = self.embed(picture).permute(0, 2, 3, 1).flatten(1, 2)
        x = self.norms[0](tokens) + self.position
        for norm, linear in zip(self.norms[1:], self.linears, strict=False):
            x = self.added(x, F.dropout(self.product(norm(x), linear), training=self.training))
        return self.end(x, self.norms[-1](x))

    def product(self, x: Tensor, linear: nn.Module) -> Tensor:
        assert isinstance(linear, nn.Linear)
        return linear(x.relu())

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def end(self, _: Tensor, normed: Tensor) -> Tensor:
        return normed


class Chosen(Host):
    """Columns of weights are chosen and scaled for every input, as gates do."""

    def product(self, x: Tensor, linear: nn.Module) -> Tensor:
        assert isinstance(linear, nn.Linear)
        index = x.mean(1).topk(4).indices.flatten()
        weight = linear.weight.t().index_select(0, index).unsqueeze(0) * index.float()[:, None]
        carried = linear.weight.new_ones(1, 1, 4).matmul(weight).squeeze(1)
        bias = (linear.bias + carried).squeeze(0)
        return F.linear(x.index_select(2, index), weight.squeeze(0).t(), bias)


class ReadOtherwise(Host):
    def end(self, x: Tensor, normed: Tensor) -> Tensor:
        return normed + x.abs()


class ReadByItsOwnLayer(Host):
    def added(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.linears[0](x) + y


class WithWhatHasOneChannel(Host):
    """Every sum has a term that must lose its mean at every call."""

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y * x.mean(-1, keepdim=True)


class PostNorm(Host):
    """The stream is normed itself, and read by layers."""

    def forward(self, picture: Tensor) -> Tensor:
        x = self.embed(picture).permute(0, 2, 3, 1).flatten(1, 2).tanh()
        for norm, linear in zip(self.norms, self.linears, strict=False):
            x = norm(x + linear(x))
        return x


@pytest.mark.parametrize("kind", [Host, Chosen])
def test_a_stream_that_norms_alone_read_is_centred(kind: type[Host]) -> None:
    program = centred(kind())
    assert not norms(program)
    # The first norm's scale leaves a mean that is taken out at every call; all else is in weights.
    assert len(means_at_every_call(program)) == 1


@pytest.mark.parametrize("kind", [ReadOtherwise, ReadByItsOwnLayer, WithWhatHasOneChannel])
def test_a_stream_that_something_else_reads_stays(kind: type[Host]) -> None:
    assert len(norms(centred(kind()))) == 4  # the embedding's own norm does not read the stream


def test_norms_that_gain_no_more_than_centring_costs_stay() -> None:
    assert len(norms(centred(PostNorm()))) == 3


def test_other_precisions_stay() -> None:
    model = Host().double().eval()
    example = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    program = torch.export.export(model, (example,), strict=False)
    assert len(norms(norms_to_rms_norms(program))) == 5


def centred(model: nn.Module) -> ExportedProgram:
    """Rewrite the traced model, and compare what it computes at two sizes."""
    picture = torch.randn(1, 3, 8, 8)
    program = torch.export.export(
        model.eval(), (picture,), dynamic_shapes=({2: Dim.AUTO},), strict=False
    )
    program._guards_code = []
    norms_to_rms_norms(program)
    program.graph.lint()
    for height in (8, 12):
        picture = 3 * torch.randn(1, 3, height, 8) + 1
        torch.testing.assert_close(program.module()(picture), model(picture), rtol=1e-4, atol=1e-5)
    return program


def norms(program: ExportedProgram) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.target == ATEN.layer_norm.default]


def means_at_every_call(program: ExportedProgram) -> list[fx.Node]:
    """Return what a mean is subtracted from at every call."""
    differences = [node for node in program.graph.nodes if node.target == ATEN.sub.Tensor]
    return [node for node in differences if depends_on_input(node)]


def depends_on_input(node: fx.Node) -> bool:
    if node.op == "placeholder":
        return node.name[:2] not in {"p_", "b_"}
    return any(depends_on_input(source) for source in node.all_input_nodes)
