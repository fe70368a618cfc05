"""Calls of several instances are those that the model takes."""

import pytest
import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.host.variation import packing, several, small_example


class Fields(nn.Module):
    """Two fields of ids in one tensor, each with a vocabulary of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(100, 4), nn.Embedding(3, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.user(ids[:, 0]) + self.item(ids[:, 1])


@pytest.mark.parametrize("shape", [(1,), (1, 1), (8,), (8, 1)])
@pytest.mark.parametrize("value", [0, 1, 99])
def test_ids_of_one_column_differ_between_instances_and_stay_in_the_vocabulary(shape, value):
    call = Example((torch.full(shape, value), torch.randint(0, 100, shape)))
    for seed in (0, 1):
        found = call.batched(2, seed=seed).args[0]
        assert found.shape == (2, *shape[1:])
        assert found[0] != found[1]
        assert 0 <= int(found.min()) <= int(found.max()) <= max(value, 1)
    one, other = (call.batched(2, seed=seed).args[0][1] for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize("ids", [[[3, 4]], [[7, 7, 7]], [[0, 0, 0, 0]], [[1, 0, 0]]])
def test_the_second_instance_differs_from_the_first_and_between_seeds(ids):
    one, other = (Example((torch.tensor(ids),)).batched(2, seed=seed).args[0] for seed in (0, 1))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[1], other[1])


def test_a_single_number_gets_noise_that_is_a_number():
    assert torch.isfinite(Example((torch.ones(1, 1),)).batched(1).args[0]).all()


def test_fields_of_their_own_vocabularies_are_varied_each_by_its_own_values():
    call = Example((torch.tensor([[90, 2], [80, 1], [70, 0]]),))
    found = several(Fields(), call, 2)
    assert isinstance(found, Example)
    assert not torch.equal(found.args[0][0], found.args[0][1])


def test_numbers_that_a_model_counts_by_are_kept():
    class Counted(nn.Module):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            if int(lengths.max()) != x.shape[1] or int(lengths.min()) != x.shape[1]:
                raise ValueError("every row is whole here")
            return x

    found = several(Counted(), Example((torch.randn(1, 5, 2), torch.tensor([5]))), 2)
    assert isinstance(found, Example)
    assert found.args[1].tolist() == [5, 5]


def test_a_model_of_one_instance_is_no_crash():
    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(1, 6)

    call = Example((torch.randn(1, 6),))
    found = several(Single(), call, 2)
    assert isinstance(found, str)
    assert "side by side" in found


def test_large_pictures_are_cut_where_the_model_takes_that():
    found = small_example(nn.Conv2d(3, 4, 3), Example((torch.randn(1, 3, 200, 300),)))
    assert isinstance(found, Example)
    assert found.args[0].shape == (2, 3, 128, 128)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ({"x": torch.randn(24, 8), "grid_thw": torch.tensor([[1, 4, 6]])}, ("grid_thw", 24)),
        ({"x": torch.randn(1, 24, 8), "cu_seqlens": torch.tensor([0, 10, 24])}, ("cu_seqlens", 24)),
        ({"x": torch.randn(24, 8), "sizes": torch.tensor([10, 14])}, ("sizes", 24)),
        ({"x": torch.randn(2, 7, 8), "lengths": torch.tensor([7, 4])}, None),
        ({"x": torch.randn(1, 9, 8), "position_ids": torch.arange(9)}, None),
        ({"input_ids": torch.randint(5, 60, (1, 12))}, None),
    ],
)
def test_sizes_of_pieces_in_one_row_are_told_from_lengths(call, found):
    assert packing(Example((), call)) == found
