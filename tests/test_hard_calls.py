"""Calls and models that users give by mistake, or that are unusual and right."""

import copy

import pytest
import torch
from torch import nn

import dynprune
from dynprune.errors import InputError, UsageError
from dynprune.gate import gates
from tests.gate.zoo_laws import error, run

X = torch.randn(6, 9, 16, generator=torch.Generator().manual_seed(0))
HALF = dynprune.load_recipe("any", ["sparsity.final=0.5"])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(x)))


def answer(model: nn.Module) -> list[torch.Tensor]:
    return run(model, dynprune.Example((X,)))


def test_gating_a_gated_model_again_is_refused_and_leaves_it_gated():
    student = dynprune.apply(Block().eval(), X[:1], HALF, calibration=X.split(1))
    before = answer(student)
    with pytest.raises(UsageError, match="gated already"):
        dynprune.apply(student, X[:1], HALF, calibration=X.split(1))
    assert error(answer(student), before) == 0.0


def test_a_tensor_or_mapping_for_calibration_is_one_call_and_not_its_rows_or_names():
    students = [
        dynprune.apply(Block().eval(), X[:1], HALF, calibration=calls)
        for calls in ([X], X, {"x": X}, dynprune.Example((X,)))
    ]
    for student in students[1:]:
        assert error(answer(student), answer(students[0])) == 0.0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_calibration_with_infinite_numbers_names_the_call_and_leaves_the_model_dense(wrong):
    model = Block().eval()
    before = answer(model)
    with pytest.raises(InputError, match=r"call 2 .*fc1"):
        dynprune.apply(model, X[:1], HALF, calibration=[X[:1], X[1:2] * wrong, X[2:3]])
    assert error(answer(model), before) == 0.0


def test_activations_whose_squares_leave_the_range_of_halves_are_measured_as_in_single():
    model = Block().eval()
    with torch.no_grad():
        model.fc1.weight.mul_(1500)
        model.fc2.weight.div_(1500)
    orders = []
    for dtype in (torch.float32, torch.float16):
        calls = X.to(dtype).split(1)
        half = copy.deepcopy(model).to(dtype)
        half = dynprune.apply(half, calls[0], HALF, calibration=calls)
        (gate,) = gates(half).values()
        orders.append(gate.prior.float())
    assert torch.allclose(*orders, atol=0.02)


def test_restoring_a_model_that_nothing_was_done_to_returns_it():
    model = Block().eval()
    assert dynprune.restore(model) is model


def test_what_is_no_module_is_refused_in_words():
    with pytest.raises(UsageError, match=r"torch\.nn\.Module"):
        dynprune.inspect(lambda x: x, X)  # type: ignore[arg-type]


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


@pytest.mark.parametrize("far", [-torch.inf, torch.finfo(torch.float32).min, -1e4])
def test_padding_in_a_mask_that_is_added_to_scores_takes_no_part(far):
    mask = torch.zeros(6, 9)
    mask[1, 5:] = far
    call = {"src": X, "src_key_padding_mask": mask}
    model = dynprune.apply(encoder(), call, HALF, calibration=[call])
    with torch.no_grad():
        alone, padded = model(X[1:2, :5]), model(**call)[1:2, :5]
    assert torch.allclose(padded, alone, atol=1e-5)


def test_edges_that_stand_in_order_beside_ids_are_kept_in_order():
    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ids, self.width, self.block = nn.Embedding(50, 16), nn.Embedding(40, 16), Block()

        def forward(self, ids, boxes):
            x = self.ids(ids) + self.width(boxes[..., 1] - boxes[..., 0])
            return self.block(x + x.mean(1, keepdim=True))

    ids = torch.arange(18).view(2, 9) + 3
    boxes = torch.stack([torch.arange(18).view(2, 9), torch.arange(18).view(2, 9) + 20], -1)
    model = Boxes().eval()
    assert copy.deepcopy(model)(ids, boxes).shape == (2, 9, 16)
    assert [plan.mode for plan in dynprune.inspect(model, (ids, boxes)).plans] == ["compact"]
