"""Compact execution against products that are written out with explicit masks."""

import itertools

import pytest
import torch

from dynprune.gate.compact import (
    gathered_product,
    kept_channels,
    multiply,
    narrowed,
    scattered,
    widened,
)
from tests.gate.products import F64, FORMS, SIZE, axis, dense, nothing, taken

BATCHES = [0, 1, 3]
SIDES = ["rows", "columns", "both"]


def drawn(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(found, wanted):
    assert found.shape == wanted.shape
    return torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("form", FORMS)
def test_kept_channels_are_those_of_an_explicit_mask_and_channels_of_no_gate_stay(form, batch):
    made = axis(form, batch, "compact")
    kept = kept_channels(made.bounds, SIZE, F64)
    wanted = [row.nonzero().flatten().tolist() for row in made.keep]
    assert kept.index.tolist() == wanted
    assert close(kept.value, made.factor.gather(1, kept.index))
    assert close(kept.mean, made.mean.expand(batch, -1).gather(1, kept.index))


def test_one_gate_over_the_whole_axis_says_none_where_values_and_means_are_trivial():
    kept = kept_channels(axis("whole", 2, "compact", values=False, means=False).bounds, SIZE, F64)
    assert (kept.value, kept.mean) == (None, None)
    silent = kept_channels(axis("whole", 2, "compact", carries=False).bounds, SIZE, F64)
    assert silent.value is None


def test_where_the_last_position_carries_the_first_one_of_a_neuron_does_not():
    made = axis("table", 3, "compact", last=True)
    kept = kept_channels(made.bounds, SIZE, F64)
    assert close(kept.value, made.factor.gather(1, kept.index))
    assert made.factor.eq(1).any()
    assert made.factor.ne(1).any()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("form", FORMS)
def test_the_gathered_product_is_the_dense_one_with_masks(form, side, batch):
    # Values go to the smaller factor of the two, which the number of tokens decides.
    for tokens, values, means in itertools.product([1, 4, 30], [True, False], [True, False]):
        rows = columns = nothing(batch)
        if side != "columns":
            rows = axis(form, batch, "compact", values=values, means=means, seed=1)
        if side != "rows":
            columns = axis(form, batch, "compact", values=values, means=means, seed=2)
        x, weight, bias = drawn(batch, tokens, SIZE), drawn(SIZE, SIZE), drawn(SIZE)
        found = gathered_product(
            taken(x, columns),
            weight,
            bias,
            rows=kept_channels(rows.bounds, SIZE, F64) if rows.bounds else None,
            columns=kept_channels(columns.bounds, SIZE, F64) if columns.bounds else None,
        )
        wanted = taken(dense(x, weight, bias, rows, columns), rows)
        assert close(found, wanted), (tokens, values, means)


@pytest.mark.parametrize("side", SIDES)
def test_the_gathered_product_does_without_a_bias(side):
    rows = axis("whole", 2, "compact", seed=1) if side != "columns" else nothing(2)
    columns = axis("two", 2, "compact", seed=2) if side != "rows" else nothing(2)
    x, weight = drawn(2, 4, SIZE), drawn(SIZE, SIZE)
    found = gathered_product(
        taken(x, columns),
        weight,
        None,
        rows=kept_channels(rows.bounds, SIZE, F64) if rows.bounds else None,
        columns=kept_channels(columns.bounds, SIZE, F64) if columns.bounds else None,
    )
    wanted = dense(x, weight, 0.0, rows, columns)
    assert close(found, taken(wanted, rows))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("offset", [True, False])
def test_multiply_gives_every_instance_its_own_product(batch, transposed, offset):
    tokens, weight, constant = drawn(batch, 4, 5), drawn(batch, 5, 7), drawn(batch, 7)
    given = weight.transpose(1, 2).contiguous() if transposed else weight
    found = multiply(tokens, given, constant if offset else None, transposed=transposed)
    wanted = torch.einsum("bti,bio->bto", tokens, weight)
    assert close(found, wanted + constant[:, None] if offset else wanted)


@pytest.mark.parametrize("form", FORMS)
def test_narrow_inputs_stay_and_full_ones_are_narrowed(form):
    x = drawn(3, 4, SIZE)
    compact, scatter = axis(form, 3, "compact"), axis(form, 3, "scatter")
    narrow = taken(x, compact)
    kept = kept_channels(compact.bounds, SIZE, F64)
    assert narrowed(narrow, compact.bounds, kept, SIZE) is narrow
    assert torch.equal(narrowed(x, scatter.bounds, kept, SIZE), narrow)


def test_an_input_that_one_of_two_gates_has_narrowed_is_narrowed_by_the_other():
    x = drawn(3, 4, SIZE)
    compact, scatter = axis("two", 3, "compact"), axis("two", 3, "scatter")
    bounds = [compact.bounds[0], scatter.bounds[1]]
    first = axis("part", 3, "compact")  # what the first of the two alone keeps
    kept = kept_channels(bounds, SIZE, F64)
    assert torch.equal(narrowed(taken(x, first), bounds, kept, SIZE), taken(x, compact))


@pytest.mark.parametrize("form", FORMS)
def test_widened_is_the_masked_value_without_means_at_full_width(form):
    x = drawn(3, 4, SIZE)
    made = axis(form, 3, "compact")
    kept = kept_channels(made.bounds, SIZE, F64)
    wanted = torch.einsum("bti,bi,bi->bti", x - made.mean, made.keep, made.factor)
    assert close(widened(taken(x, made), kept, SIZE), wanted)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("form", FORMS)
def test_scattered_outputs_stand_where_they_stood_with_zeros_between(form, batch):
    y = drawn(batch, 4, SIZE)
    made = axis(form, batch, "scatter")
    rows = kept_channels(made.bounds, SIZE, F64)
    found = scattered(taken(y, made), made.bounds, rows, SIZE, F64)
    assert close(found, torch.einsum("bto,bo->bto", y, made.keep))


def test_compact_outputs_stay_narrow():
    made = axis("whole", 2, "compact")
    y = drawn(2, 4, 6)
    assert scattered(y, made.bounds, kept_channels(made.bounds, SIZE, F64), SIZE, F64) is y


def test_outputs_of_a_compact_and_a_scattered_gate_are_as_wide_as_the_compact_one_leaves():
    y = drawn(3, 4, SIZE)
    compact, scatter = axis("two", 3, "compact"), axis("two", 3, "scatter")
    bounds = [compact.bounds[0], scatter.bounds[1]]
    rows = kept_channels(bounds, SIZE, F64)
    found = scattered(taken(y, compact), bounds, rows, SIZE, F64)
    zeros = torch.einsum("bto,bo->bto", y, compact.keep)
    assert close(found, taken(zeros, axis("part", 3, "compact")))


def test_the_gradient_of_a_compact_product_is_that_of_the_dense_one_with_masks():
    rows, columns = axis("whole", 2, "compact", seed=1), axis("two", 2, "compact", seed=2)
    x = drawn(2, 4, SIZE)
    gradients = []
    for compact in (True, False):
        weight, bias = drawn(SIZE, SIZE).requires_grad_(), drawn(SIZE).requires_grad_()
        if compact:
            y = gathered_product(
                taken(x, columns),
                weight,
                bias,
                rows=kept_channels(rows.bounds, SIZE, F64),
                columns=kept_channels(columns.bounds, SIZE, F64),
            )
        else:
            y = dense(x, weight, bias, rows, columns)
        y.square().sum().backward()
        gradients.append((weight.grad, bias.grad))
    assert all(close(a, b) for a, b in zip(*gradients, strict=True))
