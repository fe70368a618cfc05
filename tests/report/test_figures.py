"""Figures are to scale: their bars and marks say the numbers that stand beside them."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from dynprune.measure.macs import LayerMacs
from dynprune.report import figures
from dynprune.report.blocks import sum_blocks

from .conftest import marks_of


def rects(drawing):
    root = ElementTree.fromstring(drawing.__html__())
    return [
        (float(r.get("x")[:-1]), float(r.get("y")), float(r.get("width")[:-1]), r.get("class"))
        for r in root.iter("rect")
    ]


def with_layers(found, layers):
    return replace(found, macs=replace(found.macs, layers=tuple(layers)), parts={})


def test_the_headline_is_to_scale(measured) -> None:
    macs = measured.found.macs
    bars = [rects(row.drawing)[1][2] for row in figures.headline_rows(measured.found)]
    wanted = [macs.dense, macs.rewritten, macs.analytic, macs.executed.mean]
    assert bars == pytest.approx([100 * count / macs.dense for count in wanted], abs=1e-3)


def test_the_bars_of_layers_are_to_scale(measured) -> None:
    found = measured.found
    blocks = sum_blocks(found.macs.layers, found.parts)
    longest = max(block.size for block in blocks)
    assert not figures.is_cut(found)
    for row, block in zip(figures.layer_rows(found), blocks, strict=True):
        assert row.name == block.name
        drawn = {2.0: 0.0, 14.0: 0.0}
        for _, top, width, _ in rects(row.drawing):
            drawn[top] += width
        assert drawn[2.0] == pytest.approx(100 * sum(block.dense) / longest, abs=0.01)
        assert drawn[14.0] == pytest.approx(100 * sum(block.pruned) / longest, abs=0.01)


def test_a_block_that_dwarfs_all_others_is_cut_and_shows_its_gap(measured) -> None:
    layers = [LayerMacs("a.0.x", 10, 5), LayerMacs("a.1.x", 20, 10), LayerMacs("b.0.x", 1000, 4)]
    found = with_layers(measured.found, layers)
    assert figures.is_cut(found)
    rows = figures.layer_rows(found)
    drawn = [rects(row.drawing) for row in rows]
    assert ["tear" in {style for *_, style in row} for row in drawn] == [False, False, True]
    assert drawn[1][0][2] == pytest.approx(100 / 1.5, abs=0.01)
    assert all(left + width <= 100.001 for row in drawn for left, _, width, _ in row)
    assert not figures.is_cut(with_layers(measured.found, layers[:2]))


def test_types_fill_their_bars(measured) -> None:
    rows = figures.type_rows(measured.found.neurons)
    for row, group in zip(rows, measured.found.neurons.groups, strict=True):
        drawn = {style: width for _, _, width, style in rects(row.drawing)}
        wanted = {f"type-{k}": 100 * n / group.neurons for k, n in group.counts.items() if n}
        assert drawn == pytest.approx(wanted, abs=1e-2)
        assert row.detail == group.kind


def test_overlap_shows_worlds_where_there_are_some_and_what_chance_gives(measured) -> None:
    neurons = measured.found.neurons
    plain = replace(
        neurons,
        groups=tuple(
            replace(g, overlap=replace(g.overlap, same_world=None, different_worlds=None))
            for g in neurons.groups
        ),
    )
    for found, styles in (
        (neurons, ["chance", "lap-same", "lap-other"]),
        (plain, ["chance", "lap-all"]),
    ):
        for row, group in zip(figures.overlap_rows(found), found.groups, strict=True):
            placed = marks_of(row.drawing)
            assert [style for _, style in placed] == styles
            assert placed[0][0] == pytest.approx(3 + 94 * group.kept / group.neurons, abs=1e-2)
    lone = replace(neurons, groups=tuple(replace(g, overlap=None) for g in neurons.groups))
    assert figures.overlap_rows(lone) == []


@pytest.mark.parametrize("counts", [[5], [7, 7, 7], [1, 2, 3, 50, 100], list(range(100, 200))])
def test_a_histogram_counts_every_picture_once(counts) -> None:
    drawing = figures.executed_figure([count * 10**6 for count in counts])
    root = ElementTree.fromstring(drawing.__html__())
    titles = [int(title.text) for title in root.iter("title")]
    assert sum(titles) == len(counts)
    heights = [float(r.get("height")) for r in root.iter("rect")]
    assert heights == pytest.approx([100 * t / max(titles) for t in titles], abs=1e-3)
