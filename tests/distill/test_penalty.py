"""The gate penalty against its formula."""

import pytest
import torch

from dynprune.distill.penalty import gate_l1


def test_the_penalty_is_a_sum_over_gates_and_neurons_and_a_mean_over_instances():
    first = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 4.0]])
    second = torch.tensor([[0.5], [-1.5]])
    assert gate_l1([first, second]).item() == pytest.approx((6 + 4) / 2 + (0.5 + 1.5) / 2)


def test_the_penalty_does_not_change_when_the_batch_is_repeated():
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gate_l1([values]), gate_l1([values.repeat(4, 1)]))


def test_the_gradient_is_the_sign_over_the_batch():
    values = torch.tensor([[2.0, -3.0]], requires_grad=True).expand(2, 2)
    values.retain_grad()
    gate_l1([values]).backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.5, -0.5]] * 2))


def test_a_model_without_gates_has_no_penalty():
    assert gate_l1([]).item() == 0.0
