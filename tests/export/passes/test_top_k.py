"""Gates choose by fewer operators, and what they choose stays."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from dynprune.example import Example
from dynprune.export.passes.top_k import fuse_top_k
from dynprune.export.program import Target, exportable
from dynprune.gate import gates
from tests.export.conftest import pictures

ATEN = torch.ops.aten


class Choice(nn.Module):
    """A gate's choice as gated layers trace it, for two heads."""

    def __init__(self, *, is_read_otherwise: bool = False, is_shared: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.prior = nn.Parameter(torch.randn(8))
        self.beta = nn.Parameter(torch.tensor(0.3))
        self.weight = nn.Parameter(torch.randn(8, 5))
        self.mean = nn.Parameter(torch.randn(8))
        self.is_read_otherwise = is_read_otherwise
        self.is_shared = is_shared

    def forward(self, summary: Tensor) -> list[Tensor]:
        f = self.up(summary)
        factor = 1.0 + self.beta * f
        best = (self.prior + f).view(-1, 2, 4).topk(2, sorted=False).indices
        first = torch.arange(0, 8, 4)[:, None]
        index = (best.sort(dim=-1).values + first).view(-1, 4)
        value = factor.gather(1, index)
        rows = self.weight.index_select(0, index.flatten()).view(1, 4, -1)
        mean = self.mean.index_select(0, index.flatten()).view(1, 4) * value
        out = [torch.ones(5) - (mean[:, None] @ (rows * value[..., None])).squeeze(1)]
        if self.is_read_otherwise:
            out.append(index * 2)
        if self.is_shared:
            out.append(mean.sum())
        return out


def test_a_choice_that_only_gathering_reads_is_not_sorted() -> None:
    targets = simplified(Choice())
    assert not targets & {ATEN.sort.default, ATEN.gather.default, ATEN.sub.Tensor}
    assert ATEN.neg.default in targets


def test_a_choice_whose_order_shows_is_sorted() -> None:
    assert ATEN.sort.default in simplified(Choice(is_read_otherwise=True))


def test_scores_whose_other_readers_do_not_know_the_prior_keep_it_apart() -> None:
    class Host(Choice):
        def forward(self, summary: Tensor) -> list[Tensor]:
            f = self.up(summary).unsqueeze(0).squeeze(0)
            return [(self.prior + f).topk(2).values, f]

    nodes = rewritten(Host()).graph.nodes
    (linear,) = [node for node in nodes if node.target == ATEN.linear.default]
    assert linear.args[2].name == "p_up_bias"


def test_means_that_go_elsewhere_keep_their_sign() -> None:
    assert ATEN.neg.default not in simplified(Choice(is_shared=True))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_gated_model_chooses_by_one_operator(
    target: Target, gated: nn.Module, example: Example
) -> None:
    program = exportable(gated, example, target=target, fixed_size=True).program
    names = [node.target for node in program.graph.nodes]
    assert ATEN.sort.default not in names
    assert ATEN.gather.default not in names
    assert names.count(ATEN.topk.default) == len(gates(gated))
    picture = pictures(64, 64, seed=3)
    got, want = program.module()((picture,)), gated(picture).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def simplified(model: nn.Module) -> set[object]:
    """Rewrite the traced model, and name what it calls."""
    return {node.target for node in rewritten(model).graph.nodes}


def rewritten(model: nn.Module) -> ExportedProgram:
    """Rewrite the traced model, and compare what it computes."""
    program = torch.export.export(model, (torch.randn(1, 4),), strict=False)
    fuse_top_k(program)
    for _ in range(3):
        summary = torch.randn(1, 4)
        torch.testing.assert_close(program.module()(summary), model(summary))
    return program
