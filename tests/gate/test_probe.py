"""Where the batch is in a layer's input is found by running, rounding aside."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.api import apply, inspect
from dynprune.errors import NoMatchError
from dynprune.recipe import load_recipe


class Block(nn.Module):
    """A hidden layer beside its input."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.relu(self.fc1(x)))


class Stabilised(nn.Module):
    """Attention less the largest score of the whole batch, or over the whole batch."""

    def __init__(self, *, together: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.block, self.together = Block(), together

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1)
        mixed = (scores - scores.max()).softmax(-1) @ self.v(x)
        if self.together:
            mixed = mixed + mixed.mean(0, keepdim=True)
        return self.block(x + self.o(mixed))


class Packed(nn.Module):
    """Patches of several pictures in one row, with the rows and columns of each beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Linear(8, 32), Block()

    def forward(self, patches: Tensor, grid: Tensor) -> Tensor:
        x = self.block(self.embed(patches))
        return torch.stack([part.mean(0) for part in x.split(grid.prod(1).tolist())])


class Ragged(nn.Module):
    """Rows of one long sequence whose ends are counted up."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        x = self.block(x)
        return torch.stack([part.mean(1) for part in x.split(cu_seqlens.diff().tolist(), 1)], 1)


class OneByOne(nn.Module):
    """Takes one instance a call."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.reshape(1, 9, 32))


class Recommender(nn.Module):
    """Users and items by their ids."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(100, 16), nn.Embedding(50, 16)
        self.block, self.head = Block(), nn.Linear(32, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.head(self.block(torch.cat([self.user(user), self.item(item)], -1)))


def modes(model, *inputs):
    return {p.group.name: (p.mode, p.reason) for p in inspect(model.eval(), inputs).plans}


def test_a_maximum_over_the_batch_joins_no_instances():
    found = modes(nn.Sequential(Stabilised(), Stabilised()), torch.randn(2, 20, 32))
    assert {mode for mode, _ in found.values()} == {"compact"}


def test_an_average_over_the_batch_joins_instances():
    model = nn.Sequential(Stabilised(together=True), Stabilised())
    found = modes(model, torch.randn(2, 20, 32))
    assert found["0.q"][0] == "compact"
    assert found["1.q"][0] == "refused"
    assert "interleave" in (found["1.q"][1] or "")


@pytest.mark.parametrize("shape", [(8,), (8, 1), (1,), (1, 1)])
def test_ids_of_one_column_are_gated(shape):
    ids = torch.full(shape, 99), torch.full(shape, 49)  # the last of each vocabulary
    assert modes(Recommender(), *ids)["block.fc1"] == ("compact", None)


def test_features_whose_channels_sum_to_zero_are_told_apart():
    model = nn.Sequential(nn.LayerNorm(32, elementwise_affine=False), Block())
    found = modes(model, torch.randn(1, 9, 32))
    assert found["1.fc1"] == ("compact", None)


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (Packed(), (torch.randn(24, 8), torch.tensor([[4, 6]])), "input 1"),
        (Packed(), (torch.randn(24, 8), torch.tensor([[2, 6], [3, 4]])), "input 1"),
        (Ragged(), (torch.randn(1, 24, 32), torch.tensor([0, 10, 24])), "input 1"),
        (OneByOne(), (torch.randn(1, 9, 32),), "side by side"),
    ],
)
def test_what_cannot_be_batched_is_refused_by_name(model, inputs, said):
    found = modes(model, *inputs)
    assert {mode for mode, _ in found.values()} == {"refused"}
    assert said in (found["block.fc1"][1] or ""), found


def test_a_model_that_takes_one_instance_is_left_as_it_was():
    model = OneByOne().eval()
    with pytest.raises(NoMatchError, match="side by side"):
        apply(model, torch.randn(1, 9, 32), load_recipe("any", ["sparsity.final=0.5"]))
    assert type(model.block.fc1) is nn.Linear
