"""Overlap is what counting with sets gives."""

import itertools
from pathlib import Path

import pytest
import torch

from dynprune.measure.overlap import Overlap, domains_of, overlap_between, overlap_of

WORLDS = ("street", "street", "cell", "cell", "cell", "crop")


def kept_sets(images: int = 6, neurons: int = 20, kept: int = 8) -> tuple[torch.Tensor, list[set]]:
    masks = torch.zeros(images, neurons)
    for row in masks:
        row[torch.randperm(neurons)[:kept]] = 1
    return masks, [set(row.nonzero().flatten().tolist()) for row in masks]


def counted(sets: list[set], wanted) -> float:
    pairs = [p for p in itertools.permutations(range(len(sets)), 2) if wanted(*p)]
    return sum(len(sets[a] & sets[b]) / len(sets[a]) for a, b in pairs) / len(pairs)


def test_overlap_is_the_shared_part_of_two_sets_averaged_over_all_pairs() -> None:
    masks, sets = kept_sets()
    found = overlap_of(masks, WORLDS)
    assert found.all == pytest.approx(counted(sets, lambda a, b: True))
    same = counted(sets, lambda a, b: WORLDS[a] == WORLDS[b])
    other = counted(sets, lambda a, b: WORLDS[a] != WORLDS[b])
    assert (found.same_world, found.different_worlds) == pytest.approx((same, other))


def test_overlap_is_one_where_every_image_keeps_the_same_neurons() -> None:
    masks = kept_sets(1)[0].expand(5, -1)
    assert overlap_of(masks) == Overlap(1.0)


def test_random_sets_overlap_by_the_kept_share() -> None:
    masks, _ = kept_sets(images=200, neurons=50, kept=20)
    assert overlap_of(masks).all == pytest.approx(20 / 50, abs=0.01)


def test_a_single_image_has_no_overlap() -> None:
    assert overlap_of(kept_sets(1)[0]) is None
    assert Overlap.mean([]) is None


def test_the_mean_over_groups_leaves_out_what_no_group_has() -> None:
    found = Overlap.mean([Overlap(0.5, 0.75), Overlap(1.0, 0.25)])
    assert found == Overlap(0.75, 0.5, None)


def test_every_two_worlds_are_compared_once() -> None:
    groups = [kept_sets(), kept_sets(neurons=12, kept=3)]
    found = overlap_between([masks for masks, _ in groups], WORLDS)
    assert [(p.first, p.second) for p in found] == list(
        itertools.combinations_with_replacement(("street", "cell", "crop"), 2)
    )
    for pair in found:
        if pair.first == pair.second == "crop":
            assert pair.overlap is None  # a single picture
            continue
        ends = (pair.first, pair.second)
        each = [
            counted(sets, lambda a, b, ends=ends: (WORLDS[a], WORLDS[b]) == ends)
            for _, sets in groups
        ]
        assert pair.overlap == pytest.approx(sum(each) / 2)
    assert overlap_between([groups[0][0]], ()) == ()


@pytest.mark.parametrize(
    ("names", "worlds"),
    [
        (["street_1", "street_2", "cell_1"], ("street", "street", "cell")),
        (["street_1", "street_2"], ()),  # one world
        (["0001", "0002"], ()),  # no worlds: every name is its own
        ([], ()),
    ],
)
def test_worlds_are_told_by_the_names_of_pictures(names, worlds) -> None:
    assert domains_of([Path("a_b") / f"{name}.png" for name in names]) == worlds
