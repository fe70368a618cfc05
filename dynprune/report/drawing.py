"""Inline SVG that is as wide as its place on the page: x in percent, y in pixels.

Text keeps its size on a phone, since nothing is scaled; colours come from the page's style sheet,
so that a drawing follows the theme.
"""

from typing import Literal
from xml.etree import ElementTree

from markupsafe import Markup

__all__ = ["Drawing", "Shape"]

Shape = Literal["circle", "square", "triangle", "diamond", "tick"]

_PATHS: dict[Shape, str] = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "square": "M-4.5 -4.5h9v9h-9z",
    "triangle": "M0 -5.5L5.5 4.5H-5.5z",
    "diamond": "M0 -7L7 0L0 7L-7 0z",
    "tick": "M-1 -6h2v12h-2z",
}


class Drawing:
    """A drawing under construction.

    Args:
        height: in pixels.
        label: what a screen reader says instead of it.
    """

    def __init__(self, height: float, label: str) -> None:
        self._root = ElementTree.Element(
            "svg",
            {"width": "100%", "height": f"{height:g}", "role": "img", "aria-label": label},
        )

    def bar(
        self, x: float, y: float, width: float, height: float, style: str, title: str = ""
    ) -> None:
        """Fill a rectangle; ``title`` is shown where the pointer rests on it."""
        place = {"x": f"{x:.3f}%", "y": f"{y:g}", "width": f"{width:.3f}%", "height": f"{height:g}"}
        _titled(ElementTree.SubElement(self._root, "rect", {**place, "class": style}), title)

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """Draw a straight line."""
        ends = {"x1": f"{x1:.3f}%", "y1": f"{y1:g}", "x2": f"{x2:.3f}%", "y2": f"{y2:g}"}
        ElementTree.SubElement(self._root, "line", {**ends, "class": style})

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: Literal["start", "middle", "end"] = "start",
        dx: float = 0,
        style: str = "",
    ) -> None:
        """Write a line of text, ``dx`` pixels beside x, y being its base line."""
        place = {"x": f"{x:.3f}%", "y": f"{y:g}", "dx": f"{dx:g}", "text-anchor": anchor}
        made = ElementTree.SubElement(self._root, "text", {**place, "class": style})
        made.text = text

    def mark(self, shape: Shape, x: float, y: float, style: str, title: str = "") -> None:
        """Put a mark with its centre at a point."""
        place = {"x": f"{x:.3f}%", "y": f"{y:g}", "overflow": "visible"}
        holder = ElementTree.SubElement(self._root, "svg", place)
        _titled(ElementTree.SubElement(holder, "path", {"d": _PATHS[shape], "class": style}), title)

    def __html__(self) -> Markup:
        """Return the markup, all texts escaped; templates put it in as it is."""
        return Markup(ElementTree.tostring(self._root, encoding="unicode"))


def _titled(element: ElementTree.Element, title: str) -> None:
    if title:
        ElementTree.SubElement(element, "title").text = title
