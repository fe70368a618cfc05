"""Accuracy against multiply-adds: this model beside the paper's."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dynprune.report.drawing import Drawing, Shape
from dynprune.report.figures import Key
from dynprune.report.numerals import signed
from dynprune.report.published import PUBLISHED, PublishedPoint
from dynprune.report.results import Results

__all__ = ["tradeoff_figure"]


@dataclass(frozen=True)
class _Series:
    key: Key
    points: list[tuple[float, float, str]]  # share of the dense MACs, change in points, label


def tradeoff_figure(found: Results) -> tuple[Drawing, list[Key]]:
    """Change of mIoU against the share of the dense model's multiply-adds, ours and the paper's."""
    series = [
        _Series(Key(style, f"{model}, {data} (paper)", shape), _relative(points))
        for (model, data, points), (style, shape) in zip(_papers(), _PAPER_MARKS, strict=True)
    ]
    change = None if found.comparison is None else found.comparison.change
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
