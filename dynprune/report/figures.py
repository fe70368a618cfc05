"""The figures of the report's page, each a few rows of names, drawings and numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dynprune.report.drawing import Drawing, Shape
from dynprune.report.findings import PARTS, Findings
from dynprune.report.macs import LayerMacs
from dynprune.report.neurons import TYPES, NeuronReport
from dynprune.report.published import PUBLISHED, PublishedPoint

__all__ = [
    "Key",
    "Row",
    "accuracy_figure",
    "block_of",
    "executed_figure",
    "headline_rows",
    "layer_rows",
    "overlap_axis",
    "overlap_rows",
    "type_rows",
]

MOST_ROWS = 40  # of the figure of layers, before it is summed up
CUT = 3.0  # a block's bar is cut short where it is that many times as long as any other
TEAR = 88.0  # percent of the width, where a cut bar shows its gap
GATE = " (gate)"  # how `dynprune.report.macs` marks a gate's own row


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


def headline_rows(found: Findings) -> list[Row]:
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


def layer_rows(found: Findings) -> list[Row]:
    """Multiply-adds by block, dense above pruned, stacked by what they are spent on."""
    blocks = _blocks(found.macs.layers, found.parts)
    sizes = [max(sum(dense), sum(pruned)) for dense, pruned in blocks.values()]
    most = _scale(sizes)
    rows = []
    for name, both in blocks.items():
        dense, pruned = (sum(counts) for counts in both)
        number = f"{mega(dense)} → {mega(pruned)} M"
        drawing = Drawing(26, f"{name}: {number}")
        for top, counts, form in zip((2, 14), both, ("dense", "pruned"), strict=True):
            left = 0.0
            for part, count in zip(PARTS, counts, strict=True):
                width = min(100 * count / most, 100 - left)
                title = f"{form}, {PART_WORDS[part]}: {mega(count)} M"
                if width > 0:
                    drawing.bar(left, top, width, 10, f"part-{part} {form}", title)
                left += width
            if sum(counts) > most:
                drawing.bar(TEAR, top - 1, 1.2, 12, "tear")
        rows.append(Row(name, "", drawing, number))
    return rows


def is_cut(found: Findings) -> bool:
    """Whether `layer_rows` cuts a bar short."""
    blocks = _blocks(found.macs.layers, found.parts)
    sizes = [max(sum(dense), sum(pruned)) for dense, pruned in blocks.values()]
    return max(sizes, default=0) > _scale(sizes)


def _scale(sizes: Sequence[int]) -> float:
    """Give what a whole bar stands for; a block that dwarfs all others is cut short."""
    second, first = sorted([0, *sizes])[-2:]
    return 1.5 * second if first > CUT * second > 0 else first or 1


PART_WORDS: Mapping[str, str] = {
    "qk": "queries, keys, attention",
    "v": "values",
    "ffn": "hidden layers",
    "gates": "gates",
    "other": "all else",
}


def _blocks(
    layers: Sequence[LayerMacs], parts: Mapping[str, str]
) -> dict[str, tuple[list[int], list[int]]]:
    """Sum the layers up by block: block -> dense and pruned multiply-adds of each part."""
    anew = [layer.name for layer in layers if layer.pruned and not layer.dense]
    owners = [name for name in anew if name and not name.endswith(GATE)]
    level = max((len(_numbered(layer.name)) for layer in layers), default=0)
    while True:
        blocks: dict[str, tuple[list[int], list[int]]] = {}
        for layer in layers:
            name = layer.name.removesuffix(GATE)
            part = "gates" if name != layer.name else parts.get(name, "other")
            block = next(
                (own for own in owners if name == own or name.startswith(own + ".")),
                block_of(name, level),
            )
            dense, pruned = blocks.setdefault(block, ([0] * len(PARTS), [0] * len(PARTS)))
            dense[PARTS.index(part)] += layer.dense
            pruned[PARTS.index(part)] += layer.pruned
        if len(blocks) <= MOST_ROWS or level <= 1:
            return blocks
        level -= 1


def _numbered(name: str) -> list[int]:
    """Places of the numbers among a dotted name's components."""
    return [place for place, component in enumerate(name.split(".")) if component.isdigit()]


def block_of(name: str, level: int = 99) -> str:
    """Give the block that a module lies in: its name up to the last of ``level`` numbers.

    Example:
        >>> block_of("encoder.stages.1.blocks.0.mlp.fc1"), block_of("head.fuse.proj.conv")
        ('encoder.stages.1.blocks.0', 'head.fuse')
        >>> block_of("encoder.stages.1.blocks.0.mlp.fc1", 1), block_of("")
        ('encoder.stages.1', '(the model itself)')
    """
    components = name.split(".")
    places = _numbered(name)[: max(1, level)]
    return ".".join(components[: places[-1] + 1 if places else 2]) or "(the model itself)"


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
        marks = [("circle", lap.all, "lap-all", "all pairs")]
        if lap.same_world is not None and lap.different_worlds is not None:
            marks = [
                ("triangle", lap.same_world, "lap-same", "same world"),
                ("diamond", lap.different_worlds, "lap-other", "different worlds"),
            ]
        for shape, value, style, text in marks:
            drawing.mark(_SHAPES[shape], _at(value), 10, style, f"{text}: {value:.3f}")
        number = " · ".join(f"{value:.2f}" for _, value, _, _ in marks)
        rows.append(Row(name, group.kind, drawing, number))
    return rows


_SHAPES: Mapping[str, Shape] = {"circle": "circle", "triangle": "triangle", "diamond": "diamond"}


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


@dataclass(frozen=True)
class _Series:
    key: Key
    points: list[tuple[float, float, str]]  # share of the dense MACs, change in points, label


def accuracy_figure(found: Findings) -> tuple[Drawing, list[Key]]:
    """Change of mIoU against the share of the dense model's multiply-adds, ours and the paper's."""
    series = [
        _Series(Key(style, f"{model}, {data} (paper)", shape), _relative(points))
        for (model, data, points), (style, shape) in zip(_papers(), _PAPER_MARKS, strict=True)
    ]
    change = found.comparison.change
    if change is not None:
        macs = found.macs
        ours = [
            (1.0, 0.0, ""),
            (macs.rewritten / macs.dense, 0.0, ""),
            (macs.executed.mean / macs.dense, 100 * change, "this model"),
        ]
        series.append(_Series(Key("ours", "this model", "diamond"), ours))
    values = [y for line in series for _, y, _ in line.points]
    low, high = math.floor(min(values) - 0.3), math.ceil(max(values) + 0.3)
    height, top, bottom = 296, 24, 258

    def place(x: float, y: float) -> tuple[float, float]:
        return 5 + 90 * min(x, 1.05), bottom - (bottom - top) * (y - low) / (high - low)

    made = Drawing(height, "change of mIoU against multiply-adds")
    for level in range(low, high + 1, max(1, (high - low) // 5)):
        _, at = place(0, level)
        made.line(0, at, 100, at, "grid" if level else "base")
        made.text(0, at - 3, signed(level, 0) if level else "0", style="axis")
    for x in (0.0, 0.25, 0.5, 0.75, 1.0):
        made.text(place(x, 0)[0], bottom + 16, f"{x:.0%}", anchor="middle", style="axis")
    made.text(100, 8, "mIoU, points from dense", anchor="end", style="axis")
    made.text(50, bottom + 32, "multiply-adds, of the dense model", anchor="middle", style="axis")
    for line in series:
        spots = [(*place(x, y), label) for x, y, label in line.points]
        for (x1, y1, _), (x2, y2, _) in pairwise(spots):
            made.line(x1, y1, x2, y2, f"link {line.key.style}")
        for (x, y, label), point in zip(spots, line.points, strict=True):
            title = f"{line.key.text} {label}: {point[0]:.1%} of MACs, {signed(point[1])} points"
            made.mark(line.key.shape or "circle", x, y, line.key.style, title)
            if line.key.style == "ours" and x > 25:
                made.text(x, y, label, anchor="end", dx=-11, style="point")
            else:
                made.text(x, y + 16, label, anchor="middle", style="point")
    return made, [line.key for line in series]


_PAPER_MARKS: Sequence[tuple[str, Shape]] = (
    ("paper-1", "circle"),
    ("paper-2", "triangle"),
    ("paper-3", "square"),
)


def _papers() -> Iterable[tuple[str, str, list[PublishedPoint]]]:
    lines: dict[tuple[str, str], list[PublishedPoint]] = {}
    for point in PUBLISHED:
        lines.setdefault((point.model, point.data), []).append(point)
    return [(*name, points) for name, points in lines.items()]


def _relative(points: Sequence[PublishedPoint]) -> list[tuple[float, float, str]]:
    dense = points[0]
    return [
        (
            point.gmacs / point.dense_gmacs,
            100 * (point.miou - dense.miou),
            f"{point.prune_ratio:.0%}" if point.prune_ratio else "",
        )
        for point in points
    ]


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


def giga(macs: float) -> str:
    """Write a count in units of 1e9, to three digits or more."""
    value = macs / 1e9
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def mega(macs: float) -> str:
    """Write a count in units of 1e6."""
    value = macs / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def signed(value: float, digits: int = 2) -> str:
    """Write a change with its sign."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def share(part: float, whole: float) -> str:
    """Write a part in percent."""
    return f"{part / whole:.1%}" if whole else "-"
