"""The proof on one page: HTML that needs nothing but itself, readable in any theme and size."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dynprune.errors import OutputError
from dynprune.measure.neurons import LARGE_RANGE, PERCENTILES, SMALL_MEDIAN, TYPES
from dynprune.measure.overlap import DomainOverlap
from dynprune.report import figures, numerals, panels
from dynprune.report.blocks import PARTS
from dynprune.report.figures import Key, Row
from dynprune.report.published import PUBLISHED
from dynprune.report.results import Results
from dynprune.report.tradeoff import tradeoff_figure
from dynprune.report.training_curve import read_training_curve, training_curve_rows
from dynprune.tasks.predict import palette

__all__ = ["render", "write_page"]


def render(found: Results) -> str:
    """Return the page as HTML.

    It holds no script and its policy forbids the browser to load anything. All names are escaped.
    """
    environment = Environment(
        loader=PackageLoader("dynprune", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    compared = found.comparison
    accuracy, accuracy_keys = (None, []) if compared is None else tradeoff_figure(found)
    page: str = environment.get_template("page.html.j2").render(
        found=found,
        teacher=None if compared is None else compared.teacher,
        student=None if compared is None else compared.student,
        change=None if compared is None else compared.change,
        view=found.view,
        one="picture" if found.view is None else found.view.unit[0],
        many="pictures" if found.view is None else found.view.unit[1],
        overlap=found.neurons.overlap,
        published=PUBLISHED,
        giga=numerals.giga,
        share=numerals.share,
        signed=numerals.signed,
        name=Path(found.model).name or found.model,
        is_cut=figures.is_cut(found),
        headline=figures.headline_rows(found),
        slower=_slower(found),
        layers=figures.layer_rows(found),
        layer_keys=figures.legend(PARTS, figures.PART_WORDS, "part"),
        accuracy=accuracy,
        accuracy_keys=accuracy_keys,
        types=figures.type_rows(found.neurons),
        type_keys=figures.legend(TYPES, figures.TYPE_WORDS, "type"),
        percentiles=PERCENTILES,
        large_range=LARGE_RANGE,
        small_median=SMALL_MEDIAN,
        overlaps=figures.overlap_rows(found.neurons),
        overlap_axis=figures.overlap_axis(),
        overlap_keys=_overlap_keys(found),
        worlds=_world_table(found.neurons.world_overlap),
        executed=figures.executed_figure(found.executed),
        course=_course(found),
        colours=_colours(found),
        gained=_css(panels.GAINED),
        lost=_css(panels.LOST),
        moved=_css(panels.MOVED),
    )
    return page


def write_page(path: Path, page: str) -> None:
    """Write a page whole or not at all.

    Raises:
        OutputError: where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
        try:
            os.fchmod(handle, 0o644)
            with os.fdopen(handle, "wb") as file:
                file.write(page.encode("utf-8", "replace"))  # a file's name may be no text
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def _course(found: Results) -> list[Row]:
    course = read_training_curve(Path(found.model))
    return [] if course is None else training_curve_rows(course)


def _slower(found: Results) -> list[str]:
    """Return the engines in which the rewritten model is faster than the pruned one."""
    engines = found.latency["engines"] if found.latency else {}
    return [name for name, t in engines.items() if t["pruned_ms"] > t["rewritten_ms"]]


def _overlap_keys(found: Results) -> list[Key]:
    chance = Key("chance", "sets drawn at random", "tick")
    if found.neurons.worlds:
        return [
            Key("lap-same", "two pictures of the same world", "triangle"),
            Key("lap-other", "of different worlds", "diamond"),
            chance,
        ]
    return [Key("lap-all", "any two pictures", "circle"), chance]


def _world_table(pairs: Iterable[DomainOverlap]) -> dict[str, dict[str, float | None]]:
    """Lay pairs of worlds out as a square: world -> world -> overlap."""
    square: dict[str, dict[str, float | None]] = {}
    for pair in pairs:
        square.setdefault(pair.first, {})[pair.second] = pair.overlap
        square.setdefault(pair.second, {})[pair.first] = pair.overlap
    return square


def _colours(found: Results) -> list[tuple[str, str]]:
    """Colour and name of every class that a picture shows."""
    colours = palette().tolist()
    shown = sorted({number for panel in found.panels for number in panel.classes})
    return [
        (_css(colours[n]), found.classes[n] if n < len(found.classes) else f"class {n}")
        for n in shown
    ]


def _css(colour: Any) -> str:
    red, green, blue = colour
    return f"rgb({red} {green} {blue})"
