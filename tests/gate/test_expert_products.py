"""Products by experts are, row by row, products by the weight of that row's expert."""

import pytest
import torch
import torch.nn.functional as F

from dynprune.gate.expert_products import (
    ends_of,
    instance_product,
    sorted_product,
    token_product,
)
from dynprune.gate.router import order_by

ROUNDING = 1e-5


def drawn(rows, seed=0):
    random = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(3, 6, 5, generator=random), torch.randn(3, 6, generator=random)
    expert = torch.randint(0, 3, (rows,), generator=random)
    return torch.randn(rows, 5, generator=random), weight, bias, expert


@pytest.mark.parametrize("rows", [0, 1, 2, 50])
@pytest.mark.parametrize("biased", [True, False])
def test_every_token_is_multiplied_by_its_experts_weight(rows, biased):
    x, weight, bias, expert = drawn(rows)
    own = bias if biased else None
    found = token_product(x, weight, own, expert, order_by(expert))
    wanted = torch.einsum("ni,noi->no", x, weight[expert]) + (bias[expert] if biased else 0)
    assert found.shape == (rows, 6)
    assert torch.allclose(found, wanted, atol=ROUNDING)


@pytest.mark.parametrize("batch", [1, 4])
def test_every_instance_is_multiplied_by_its_experts_weight(batch):
    _, weight, bias, expert = drawn(batch)
    x = torch.randn(batch, 7, 5)
    found = instance_product(x, weight, bias, expert)
    wanted = [F.linear(a, weight[m], bias[m]) for a, m in zip(x, expert, strict=True)]
    assert torch.allclose(found, torch.stack(wanted), atol=ROUNDING)


def test_the_operator_that_is_traced_has_the_right_gradients():
    x, weight, bias, expert = (t.double() if t.is_floating_point() else t for t in drawn(20))
    expert = expert.sort().values
    ends = ends_of(expert, 3)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda *t: sorted_product(*t, ends), leaves)


def test_rows_of_an_expert_stay_in_their_order():
    expert = torch.tensor([2, 0, 2, 1, 0, 2])
    assert order_by(expert).tolist() == [1, 4, 3, 0, 2, 5]
