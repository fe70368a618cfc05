"""Drawings are well-formed, and no text in them can become markup."""

from xml.etree import ElementTree

from dynprune.report.drawing import Drawing

HOSTILE = '"><script>alert(1)</script>&'


def test_texts_come_out_as_they_went_in() -> None:
    made = Drawing(10, HOSTILE)
    made.text(0, 1, HOSTILE)
    made.bar(0, 0, 50, 5, "track", HOSTILE)
    made.mark("circle", 50, 5, "ours", HOSTILE)
    markup = made.__html__()
    assert "<script" not in markup
    root = ElementTree.fromstring(markup)
    assert root.get("aria-label") == HOSTILE
    assert root.find("text").text == HOSTILE
    assert [title.text for title in root.iter("title")] == [HOSTILE, HOSTILE]


def test_widths_are_in_percent_and_heights_in_pixels() -> None:
    made = Drawing(20, "")
    made.bar(25, 2, 50, 16, "track")
    made.line(0, 0, 100, 20, "grid")
    root = ElementTree.fromstring(made.__html__())
    assert (root.get("width"), root.get("height")) == ("100%", "20")
    bar = root.find("rect").attrib
    assert [bar[key] for key in ("x", "y", "width", "height")] == ["25.000%", "2", "50.000%", "16"]
    assert root.find("line").get("x2") == "100.000%"
