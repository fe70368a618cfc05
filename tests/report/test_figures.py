"""Figures are to scale: their bars and marks say the numbers that stand beside them."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from dynprune.report import figures
from dynprune.report.macs import LayerMacs


def rects(drawing):
    root = ElementTree.fromstring(drawing.__html__())
    return [
        (float(r.get("x")[:-1]), float(r.get("y")), float(r.get("width")[:-1]), r.get("class"))
        for r in root.iter("rect")
    ]


def marks(drawing):
    root = ElementTree.fromstring(drawing.__html__())
    return [(float(m.get("x")[:-1]), m.find("path").get("class")) for m in root.findall("svg")]


def with_layers(found, layers, parts=None):
    macs = replace(found.macs, layers=tuple(layers))
    return replace(found, macs=macs, parts=parts or {})


def test_the_headline_is_to_scale(measured) -> None:
    macs = measured.found.macs
    bars = [rects(row.drawing)[1][2] for row in figures.headline_rows(measured.found)]
    wanted = [macs.dense, macs.rewritten, macs.analytic, macs.executed.mean]
    assert bars == pytest.approx([100 * count / macs.dense for count in wanted], abs=1e-3)


def test_layers_lose_nothing_and_are_to_scale(measured) -> None:
    found = measured.found
    rows = figures.layer_rows(found)
    blocks = figures._blocks(found.macs.layers, found.parts)
    assert [row.name for row in rows] == list(blocks)
    assert sum(sum(dense) for dense, _ in blocks.values()) == found.macs.dense
    assert sum(sum(pruned) for _, pruned in blocks.values()) == found.macs.analytic
    longest = max(max(sum(dense), sum(pruned)) for dense, pruned in blocks.values())
    if not figures.is_cut(found):
        for row, (dense, pruned) in zip(rows, blocks.values(), strict=True):
            drawn = {2.0: 0.0, 14.0: 0.0}
            for _, top, width, _ in rects(row.drawing):
                drawn[top] += width
            assert drawn[2.0] == pytest.approx(100 * sum(dense) / longest, abs=0.01)
            assert drawn[14.0] == pytest.approx(100 * sum(pruned) / longest, abs=0.01)


def test_a_rewritten_module_takes_in_the_layers_that_it_replaces(measured) -> None:
    layers = [
        LayerMacs("body.0.fc", 100, 50),
        LayerMacs("body.0.fc (gate)", 0, 1),
        LayerMacs("head.fuse", 300, 0),
        LayerMacs("head.proj.0", 60, 0),
        LayerMacs("head", 0, 20),
    ]
    found = with_layers(measured.found, layers, {"body.0.fc": "ffn"})
    blocks = figures._blocks(found.macs.layers, found.parts)
    assert blocks == {
        "body.0": ([0, 0, 100, 0, 0], [0, 0, 50, 1, 0]),
        "head": ([0, 0, 0, 0, 360], [0, 0, 0, 0, 20]),
    }


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


def test_many_blocks_are_summed_up(measured) -> None:
    layers = [LayerMacs(f"stage.{s}.block.{b}.fc", 2, 1) for s in range(4) for b in range(30)]
    rows = figures.layer_rows(with_layers(measured.found, layers))
    assert [row.name for row in rows] == [f"stage.{s}" for s in range(4)]


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
            placed = marks(row.drawing)
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


def test_accuracy_puts_the_paper_and_this_model_on_one_scale(measured) -> None:
    drawing, keys = figures.accuracy_figure(measured.found)
    assert [key.style for key in keys] == ["paper-1", "paper-2", "paper-3", "ours"]
    ours = [x for x, style in marks(drawing) if style == "ours"]
    macs = measured.found.macs
    shares = [1.0, macs.rewritten / macs.dense, macs.executed.mean / macs.dense]
    assert ours == pytest.approx([5 + 90 * share for share in shares], abs=1e-2)
    alone = replace(measured.found, comparison=replace(measured.found.comparison, teacher=None))
    _, keys = figures.accuracy_figure(alone)
    assert "ours" not in [key.style for key in keys]


def test_numbers_are_written_for_people() -> None:
    assert [figures.giga(n) for n in (1.234e9, 5.6e7)] == ["1.23", "0.056"]
    assert [figures.mega(n) for n in (3.0481e9, 1.234e6)] == ["3,048", "1.23"]
    assert [figures.signed(n) for n in (-0.5, 0.25)] == ["\N{MINUS SIGN}0.50", "+0.25"]
    assert figures.share(1, 3) == "33.3%"
    assert figures.share(1, 0) == "-"
