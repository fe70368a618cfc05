"""Where the neurons of a gate lie on an axis, written out channel by channel."""

import pytest
import torch

from dynprune.gate.binding import all_positions, gate_mean, spread
from tests.gate.products import FORMS, SIZE, axis


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_spread_lays_each_value_at_all_positions_of_its_neuron(batch):
    index = torch.tensor([[4, 1], [0, 5], [2, 6]])
    values = torch.randn(batch, 3)
    found = spread(values, index, 8, 7.0)
    assert found.shape == (batch, 8)
    for row in range(batch):
        wanted = [7.0] * 8
        for neuron, channels in enumerate(index.tolist()):
            for channel in channels:
                wanted[channel] = float(values[row, neuron])
        assert found[row].tolist() == pytest.approx(wanted)


def test_values_of_a_whole_axis_are_laid_out_already():
    values = torch.randn(2, 6)
    assert spread(values, None, 6, 0.0) is values


def test_the_gradient_of_a_spread_value_sums_over_its_positions():
    values = torch.randn(1, 2, requires_grad=True)
    factors = torch.randn(1, 5)
    (spread(values, torch.tensor([[3, 0], [1, 4]]), 5, 1.0) * factors).sum().backward()
    wanted = [factors[0, 3] + factors[0, 0], factors[0, 1] + factors[0, 4]]
    assert values.grad[0].tolist() == pytest.approx([float(w) for w in wanted])


@pytest.mark.parametrize("form", FORMS)
def test_the_mean_of_an_axis_is_that_of_its_gates_and_zero_elsewhere(form):
    made = axis(form, 2, "compact")
    assert torch.equal(gate_mean(made.bounds, SIZE)[0], made.mean)


def test_an_axis_whose_gates_have_no_means_has_none():
    assert gate_mean(axis("two", 2, "compact", means=False).bounds, SIZE) is None
    assert gate_mean([], SIZE) is None


def test_all_positions_of_a_whole_axis_are_its_channels_in_order():
    device = torch.device("cpu")
    assert all_positions(None, 3, device).tolist() == [[0], [1], [2]]
    index = torch.tensor([[2, 0]])
    assert all_positions(index, 3, device) is index
