"""Masked execution against products that are written out with explicit masks."""

import pytest
import torch

from dynprune.gate.masked import mask_inputs, mask_outputs
from tests.gate.products import F64, FORMS, SIZE, axis


def drawn(batch):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, 4, SIZE, generator=generator, dtype=F64)


@pytest.mark.parametrize("means", [True, False])
@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_masked_inputs_are_without_their_means_times_mask_and_value(form, batch, values, means):
    made = axis(form, batch, "masked", values=values, means=means)
    x = drawn(batch)
    wanted = torch.einsum("bti,bi,bi->bti", x - made.mean, made.keep, made.factor)
    assert torch.allclose(mask_inputs(x, made.bounds), wanted, rtol=1e-12)


@pytest.mark.parametrize("carries", [True, False])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("form", ["whole", "part", "two"])
def test_masked_outputs_are_zero_where_skipped_and_carry_the_value_where_it_multiplies(
    form, batch, carries
):
    made = axis(form, batch, "masked", means=False, carries=carries)
    y = drawn(batch)
    if carries and form == "two":  # of several positions the last alone carries
        made = axis(form, batch, "masked", means=False, last=True)
    wanted = torch.einsum("bto,bo,bo->bto", y, made.keep, made.factor)
    assert torch.allclose(mask_outputs(y, made.bounds), wanted, rtol=1e-12)


def test_where_queries_and_keys_lie_in_one_layer_the_last_position_carries():
    made = axis("table", 3, "masked", means=False, last=True)
    y = drawn(3)
    wanted = torch.einsum("bto,bo,bo->bto", y, made.keep, made.factor)
    assert torch.allclose(mask_outputs(y, made.bounds), wanted, rtol=1e-12)


def test_the_gradient_reaches_the_mask_through_both_sides():
    for function in (mask_inputs, mask_outputs):
        made = axis("whole", 2, "masked", means=False)
        mask = made.bounds[0].selection.mask.clone().requires_grad_()
        object.__setattr__(made.bounds[0].selection, "mask", mask)
        y = drawn(2)
        function(y, made.bounds).sum().backward()
        assert torch.allclose(mask.grad, y.sum(1))
