"""Counting and choosing the neurons that are kept."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynprune.gate.topr import keep_mask, kept_count, top_r


def test_a_ratio_of_zero_keeps_everything_whatever_the_alignment() -> None:
    assert [kept_count(size, 0.0, 16) for size in (1, 7, 32, 100)] == [1, 7, 32, 100]


@given(st.integers(1, 4096), st.floats(0.01, 0.99), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_the_count_is_within_half_a_multiple_of_the_exact_share(
    size: int, ratio: float, align: int
) -> None:
    kept = kept_count(size, ratio, align)
    exact = (1 - ratio) * size
    assert 1 <= kept <= size
    assert abs(kept - exact) <= max(align / 2, align - exact) + 1e-9
    powers = [2**k for k in range(5) if 2**k < align and 4 * 2**k <= size]
    multiple = align if 4 * align <= size else max(powers, default=1)
    assert kept == size or kept % multiple == 0


def test_a_segment_too_small_for_the_alignment_still_has_four_sizes() -> None:
    sizes = {kept_count(32, ratio / 100, 16) for ratio in range(1, 100)}
    assert sizes == {8, 16, 24, 32}


def test_an_impossible_ratio_or_alignment_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prune_ratio=1\.0"):
        kept_count(8, 1.0)
    with pytest.raises(ValueError, match="align=0"):
        kept_count(8, 0.5, 0)


def test_every_head_keeps_its_own_best_neurons_in_ascending_order() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.2, 9.0, 8.0, 7.0, 6.0]])
    assert top_r(scores, 2, segments=2).tolist() == [[1, 2, 4, 5]]
    assert top_r(scores, 4, segments=1).tolist() == [[4, 5, 6, 7]]


def test_the_kept_neurons_have_the_largest_scores() -> None:
    scores = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    index = top_r(scores, 7)
    mask = keep_mask(index, 24, scores.dtype).bool()
    assert mask.sum(1).tolist() == [7] * 5
    least_kept = scores.masked_fill(~mask, torch.inf).amin(1)
    best_dropped = scores.masked_fill(mask, -torch.inf).amax(1)
    assert bool((least_kept > best_dropped).all())
