"""Units of groups, and calls that are cut to what suffices."""

import pytest
import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate import GateConfig, plan_groups
from dynprune.gate.probe import small_example
from dynprune.gate.units import TOKENS, fewer_tokens
from dynprune.graph import find_groups


def test_every_axis_of_tokens_is_cut():
    x, mask = torch.randn(2, 100, 16), torch.ones(2, 1, 100, 100)
    (args, kwargs) = fewer_tokens(((x,), {"mask": mask, "flag": True}))
    assert torch.equal(args[0], x[:, :TOKENS])
    assert kwargs["mask"].shape == (2, 1, TOKENS, TOKENS)


@pytest.mark.parametrize(
    "call",
    [
        ((torch.randn(2, 40, 16),), {}),
        ((torch.randn(2, 100, 100),), {}),
        ((torch.randn(2, 16, 10, 10),), {}),
        ((torch.randn(2, 100, 16), 100), {}),
        ((torch.zeros(2, 100, 16, dtype=torch.int64),), {}),
        ((), {}),
    ],
    ids=["few", "as many as channels", "a map", "told their number", "numbers", "nothing"],
)
def test_a_call_that_cannot_be_cut_safely_is_not(call):
    assert fewer_tokens(call) is None


class Told(nn.Module):
    """A residual stream around a layer that needs all tokens."""

    def __init__(self, few: str) -> None:
        super().__init__()
        self.inner = Inner(few)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Inner(nn.Module):
    """A hidden layer that only works for all tokens, or does nothing for few."""

    def __init__(self, few: str) -> None:
        super().__init__()
        self.up, self.down, self.few = nn.Linear(8, 32), nn.Linear(32, 8), few

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] < 100:
            if self.few == "fails":
                raise ValueError("all 100 tokens or none")
            return torch.zeros_like(x)
        return self.down(torch.relu(self.up(x)))


@pytest.mark.parametrize("few", ["fails", "gives nothing"])
def test_what_holds_for_all_tokens_alone_is_proved_on_all(few):
    model, example = Told(few).eval(), Example((torch.randn(2, 100, 8),))
    groups = find_groups(model, example).groups
    plans = plan_groups(model, example, groups, {g.name: GateConfig() for g in groups})
    assert [(p.group.name, p.mode) for p in plans] == [("inner.up", "compact")]


class Embedder(nn.Module):
    """A model of ids, which needs a few real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.longest = 0

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return (self.table(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@pytest.mark.parametrize(("padding", "length"), [("last", 32), ("first", 100)])
def test_ids_are_cut_unless_padding_stands_first(padding, length):
    ids, mask = torch.randint(2, 50, (1, 100)), torch.ones(1, 100, dtype=torch.int64)
    mask[:, slice(0, 60) if padding == "first" else slice(40, None)] = 0
    small = small_example(Embedder().eval(), Example((ids, mask)))
    assert [t.shape for t in small.tensors] == [(2, length), (2, length)]
