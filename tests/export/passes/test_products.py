"""Products of one instance keep the batch's axis where they give it back, and values stay."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dynprune.export.passes.products import multiply_in_batches

ATEN = torch.ops.aten


class Layer(nn.Module):
    """A product of the tokens of one instance, as gated layers compute it."""

    def __init__(self, *, goes_on_flat: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.goes_on_flat = goes_on_flat

    def forward(self, tokens: Tensor) -> Tensor:
        flat = F.linear(tokens.squeeze(0), self.linear.weight, self.linear.bias)
        y = flat.unsqueeze(0)
        return y + flat.mean() if self.goes_on_flat else y


def test_a_product_between_changes_of_shape_needs_none() -> None:
    program = rewritten(Layer())
    assert not {ATEN.squeeze.dim, ATEN.unsqueeze.default} & targets(program)


def test_a_product_that_others_read_flat_stays() -> None:
    assert {ATEN.squeeze.dim, ATEN.unsqueeze.default} <= targets(
        rewritten(Layer(goes_on_flat=True))
    )


def targets(program: ExportedProgram) -> set[object]:
    return {node.target for node in program.graph.nodes}


def rewritten(model: nn.Module) -> ExportedProgram:
    """Rewrite the traced model, and compare what it computes at two lengths."""
    program = torch.export.export(
        model, (torch.randn(1, 6, 4),), dynamic_shapes=({1: Dim.AUTO},), strict=False
    )
    multiply_in_batches(program)
    for length in (6, 9):
        tokens = torch.randn(1, length, 4)
        torch.testing.assert_close(program.module()(tokens), model(tokens))
    return program
