"""What a gate chose, against a sort of the scores, row by row."""

import pytest
import torch

from dynprune.gate.selection import GateOutput, select, threshold


def output(batch, neurons, *, factor=True):
    random = torch.Generator().manual_seed(1)
    scores = torch.randn(batch, neurons, generator=random, dtype=torch.float64)
    values = torch.rand(batch, neurons, generator=random, dtype=torch.float64) + 0.5
    return GateOutput(scores, values if factor else None)


def best(scores, kept, segments):
    """The kept neurons of every row, by sorting each segment of it."""
    rows = []
    for row in scores.tolist():
        width = len(row) // segments
        chosen = []
        for first in range(0, len(row), width):
            order = sorted(range(first, first + width), key=lambda j: -row[j])
            chosen += sorted(order[:kept])
        rows.append(chosen)
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), kept * segments)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize(("kept", "segments"), [(5, 1), (12, 1), (2, 3), (4, 3)])
def test_the_index_holds_the_best_neurons_of_every_segment_of_every_instance(batch, kept, segments):
    out = output(batch, 12)
    chosen = select(out, kept, segments, mean=None, execution="compact")
    assert torch.equal(chosen.index, best(out.scores, kept, segments))
    assert (chosen.batch, chosen.neurons) == (batch, 12)


def test_keep_is_one_at_the_kept_neurons_and_carries_no_gradient():
    out = output(3, 12)
    out.scores.requires_grad_()
    chosen = select(out, 5, 1, mean=None, execution="masked")
    wanted = torch.zeros(3, 12, dtype=torch.float64)
    for row, kept in enumerate(best(out.scores, 5, 1).tolist()):
        wanted[row, kept] = 1
    assert torch.equal(chosen.keep, wanted)
    assert not chosen.keep.requires_grad


def test_compact_execution_gets_the_values_of_the_kept_and_no_mask():
    out = output(3, 12)
    chosen = select(out, 5, 1, mean=None, execution="compact")
    wanted = [[row[j] for j in kept] for row, kept in zip(out.factor, chosen.index, strict=True)]
    assert chosen.mask is None
    assert torch.equal(chosen.value, torch.tensor(wanted, dtype=torch.float64))


def test_masked_execution_gets_the_value_of_every_kept_neuron_and_zero_elsewhere():
    out = output(3, 12)
    chosen = select(out, 5, 1, mean=None, execution="masked")
    assert chosen.value is None
    assert torch.equal(chosen.mask, chosen.keep * out.factor)


def test_without_values_a_mask_is_ones_and_zeros_and_passes_the_gradient_of_a_sigmoid():
    out = output(3, 12, factor=False)
    out.scores.requires_grad_()
    chosen = select(out, 5, 1, mean=None, execution="masked")
    assert torch.allclose(chosen.mask, chosen.keep, atol=1e-15, rtol=0)
    weights = torch.randn(3, 12, dtype=torch.float64)
    (chosen.mask * weights).sum().backward()
    scores = out.scores.detach()
    least = scores.gather(1, chosen.index).amin(1, keepdim=True)
    soft = torch.sigmoid(scores - least)
    assert torch.allclose(out.scores.grad, weights * soft * (1 - soft))


def test_the_threshold_is_the_least_kept_score_of_each_segment():
    out = output(2, 12)
    found = threshold(out.scores, 2, 3)
    kept = best(out.scores, 2, 3)
    for row in range(2):
        for segment in range(3):
            least = out.scores[row, kept[row, 2 * segment : 2 * segment + 2]].min()
            assert found[row, 4 * segment : 4 * segment + 4].eq(least).all()
