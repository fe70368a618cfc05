"""The figures of the report's page, each a few rows of names, drawings and numbers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dynprune.measure.neurons import TYPES, NeuronReport
from dynprune.report.blocks import PARTS, Block, block_of, sum_blocks
from dynprune.report.drawing import Drawing, Shape
from dynprune.report.numerals import giga, mega, share
from dynprune.report.results import Results

__all__ = [
    "PART_WORDS",
    "TYPE_WORDS",
    "Key",
    "Row",
    "executed_figure",
    "headline_rows",
    "is_cut",
    "layer_rows",
    "legend",
    "overlap_axis",
    "overlap_rows",
    "type_rows",
]

CUT = 3.0  # a block's bar is cut short where it is that many times as long as any other
TEAR = 88.0  # percent of the width, where a cut bar shows its gap


@dataclass(frozen=True)
class Row:
    """One row of a figure.

    Attributes:
        name: what it is about; empty where it is that of the row above.
        detail: more of it, such as the kind of a group.
        drawing: what is shown.
        number: the same in words.
    """

    name: str
    detail: str
    drawing: Drawing
    number: str


@dataclass(frozen=True)
class Key:
    """One entry of a figure's legend.

    Attributes:
        style: class of the style sheet.
        text: what it stands for.
        shape: of the mark; None for an area.
    """

    style: str
    text: str
    shape: Shape | None = None

    @property
    def drawing(self) -> Drawing:
        """The entry's mark."""
        made = Drawing(14, "")
        if self.shape is None:
            made.bar(0, 1, 100, 12, self.style)
        else:
            made.mark(self.shape, 50, 7, self.style)
        return made


def headline_rows(found: Results) -> list[Row]:
    """Multiply-adds of the model's forms, each beside the dense one."""
    macs = found.macs
    forms = (
        ("dense", macs.dense, "form-dense"),
        ("rewritten", macs.rewritten, "form-rewritten"),
        ("pruned, by formula", macs.analytic, "form-pruned"),
        ("pruned, as it ran", macs.executed.mean, "form-pruned"),
    )
    most = max(count for _, count, _ in forms) or 1
    rows = []
    for name, count, style in forms:
        number = f"{giga(count)} G, {share(count, macs.dense)}"
        drawing = Drawing(18, f"{name}: {number}")
        drawing.bar(0, 2, 100, 14, "track")
        drawing.bar(0, 2, 100 * count / most, 14, style, number)
        rows.append(Row(name, "", drawing, number))
    return rows


def layer_rows(found: Results) -> list[Row]:
    """Multiply-adds by block, dense above pruned, stacked by what they are spent on."""
    blocks = sum_blocks(found.macs.layers, found.parts)
    most = _scale(blocks)
    rows = []
    for block in blocks:
        number = f"{mega(sum(block.dense))} → {mega(sum(block.pruned))} M"
        drawing = Drawing(26, f"{block.name}: {number}")
        for top, counts, form in ((2, block.dense, "dense"), (14, block.pruned, "pruned")):
            left = 0.0
            for part, count in zip(PARTS, counts, strict=True):
                width = min(100 * count / most, 100 - left)
                title = f"{form}, {PART_WORDS[part]}: {mega(count)} M"
                if width > 0:
                    drawing.bar(left, top, width, 10, f"part-{part} {form}", title)
                left += width
            if sum(counts) > most:
                drawing.bar(TEAR, top - 1, 1.2, 12, "tear")
        rows.append(Row(block.name, "", drawing, number))
    return rows


def is_cut(found: Results) -> bool:
    """Whether `layer_rows` cuts a bar short."""
    blocks = sum_blocks(found.macs.layers, found.parts)
    return max(block.size for block in blocks) > _scale(blocks)


def _scale(blocks: Sequence[Block]) -> float:
    """Return what a whole bar stands for; a block that dwarfs all others is cut short."""
    second, first = sorted([0, *(block.size for block in blocks)])[-2:]
    return 1.5 * second if first > CUT * second > 0 else first or 1


PART_WORDS: Mapping[str, str] = {
    "qk": "queries, keys, attention",
    "v": "values",
    "ffn": "hidden layers",
    "gates": "gates",
    "other": "all else",
}


def type_rows(found: NeuronReport) -> list[Row]:
    """Share of the neuron types of every group."""
    rows = []
    for name, group in zip(_names(found), found.groups, strict=True):
        number = " · ".join(str(count) for count in group.counts.values())
        drawing = Drawing(16, f"{group.name}: types I, II, III: {number}")
        left = 0.0
        for kind, count in group.counts.items():
            width = 100 * count / group.neurons
            if count:
                title = f"type {kind}: {count} of {group.neurons}"
                drawing.bar(left, 2, width, 12, f"type-{kind}", title)
            left += width
        rows.append(Row(name, group.kind, drawing, number))
    return rows


def overlap_rows(found: NeuronReport) -> list[Row]:
    """Overlap of the kept sets of two images, group by group."""
    rows = []
    for name, group in zip(_names(found), found.groups, strict=True):
        lap = group.overlap
        if lap is None:
            continue
        drawing = Drawing(20, f"{group.name}: overlap {lap.all:.2f}")
        _overlap_grid(drawing, 20)
        chance = group.kept / group.neurons
        drawing.mark("tick", _at(chance), 10, "chance", f"drawn at random: {chance:.2f}")
        marks: list[tuple[Shape, float, str, str]] = [("circle", lap.all, "lap-all", "all pairs")]
        if lap.same_world is not None and lap.different_worlds is not None:
            marks = [
                ("triangle", lap.same_world, "lap-same", "same world"),
                ("diamond", lap.different_worlds, "lap-other", "different worlds"),
            ]
        for shape, value, style, text in marks:
            drawing.mark(shape, _at(value), 10, style, f"{text}: {value:.3f}")
        number = " · ".join(f"{value:.2f}" for _, value, _, _ in marks)
        rows.append(Row(name, group.kind, drawing, number))
    return rows


def overlap_axis() -> Drawing:
    """The scale above the rows of overlap."""
    made = Drawing(16, "scale from 0 to 1")
    for value in (0.0, 0.5, 1.0):
        made.text(_at(value), 12, f"{value:g}", anchor="middle", style="axis")
    return made


def _overlap_grid(drawing: Drawing, height: float) -> None:
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawing.line(_at(value), 0, _at(value), height, "grid")


def _at(value: float) -> float:
    """Place of a share on a scale with room for marks at both ends."""
    return 3 + 94 * value


def _names(found: NeuronReport) -> list[str]:
    """The block of every group, once where several follow each other."""
    blocks = [block_of(group.name) for group in found.groups]
    first = blocks[:1]
    return first + ["" if one == other else other for one, other in pairwise(blocks)]


def executed_figure(counts: Sequence[int], bins: int = 12) -> Drawing:
    """A histogram of the multiply-adds that ran for each picture."""
    least, most = min(counts), max(counts)
    bins = bins if most > least else 1
    tally = [0] * bins
    for count in counts:
        place = (count - least) * bins // (most - least) if most > least else 0
        tally[min(place, bins - 1)] += 1
    height, base = 150, 126
    made = Drawing(height, f"histogram of {len(counts)} pictures")
    made.line(0, base, 100, base, "base")
    width = 100 / max(bins, 5)
    left = 0.0 if bins > 1 else 50 - width / 2
    for index, pictures in enumerate(tally):
        tall = 100 * pictures / max(tally)
        start = left + index * width
        if pictures:
            made.bar(start + 0.4, base - tall, width - 0.8, tall, "form-pruned", f"{pictures}")
            made.text(start + width / 2, base - tall - 4, f"{pictures}", anchor="middle")
    if bins == 1:
        made.text(50, height - 8, f"{giga(least)} G", anchor="middle", style="axis")
    else:
        made.text(0, height - 8, f"{giga(least)} G", style="axis")
        made.text(100, height - 8, f"{giga(most)} G", anchor="end", style="axis")
    return made


def legend(styles: Iterable[str], words: Mapping[str, str], prefix: str) -> list[Key]:
    """Name areas by their styles."""
    return [Key(f"{prefix}-{style}", words[style]) for style in styles]


TYPE_WORDS: Mapping[str, str] = dict(
    zip(
        TYPES,
        ("I, always useful", "II, depends on the picture", "III, never useful"),
        strict=True,
    )
)
