"""The page is whole, needs nothing but itself, and shows hostile names as what they are."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from dynprune.errors import OutputError
from dynprune.report.page import render, write_page
from dynprune.report.results import gather

from .conftest import PICTURES, noise

FIGURES = {
    f"figure-{name}" for name in ("headline", "layers", "accuracy", "types", "overlap", "executed")
}
VOID_TAGS = {"meta", "link", "img"}
HOSTILE = "'\"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;{{ 7*7 }}"
LATENCY = {
    "device": "cpu",
    "threads": 2,
    "batch": 1,
    "runs": 15,
    "engines": {
        "torch": {
            "dense_ms": 200.0,
            "rewritten_ms": 100.0,
            "pruned_ms": 80.0,
            "speedup": 2.5,
            "efficiency": 0.9,
        }
    },
}


class Page(HTMLParser):
    """What a page holds; fails where tags do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.ids, self.text = [], [], set(), []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids.add(dict(attrs).get("id"))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


@pytest.fixture(scope="module")
def page(measured):
    return Page(render(replace(measured.found, latency=LATENCY, recipe="schema: dynprune/1")))


def test_every_figure_is_there_and_holds_a_drawing(page) -> None:
    assert page.ids >= FIGURES
    assert sum(tag == "svg" for tag, _ in page.tags) > 20
    assert sum(tag == "img" for tag, _ in page.tags) == 3 * 4


def test_the_page_tells_the_findings(page, measured) -> None:
    found = measured.found
    for wanted in (
        f"{100 * found.comparison.student.miou:.2f}",
        f"{100 * found.comparison.teacher.miou:.2f}",
        f"{found.neurons.overlap.all:.3f}",
        f"{found.macs.pruned_parameters:,}",
        "80.0 ms",
        "2.50 times as fast",
        "schema: dynprune/1",
        "DynaSegFormer",
        *found.classes,
    ):
        assert wanted in page.words


def test_the_page_says_where_gates_are_slower_than_the_rewritten_model(measured) -> None:
    quick = LATENCY["engines"]["torch"]
    slow = {**quick, "pruned_ms": quick["rewritten_ms"] + 1}
    latency = {**LATENCY, "engines": {"quick": quick, "slow": slow, "slower": slow}}
    words = Page(render(replace(measured.found, latency=latency))).words
    assert "In slow, slower the gates cost more time than they save" in words
    assert "cost more time" not in Page(render(replace(measured.found, latency=LATENCY))).words


def test_the_page_loads_nothing_and_runs_nothing(page) -> None:
    assert "script" not in {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    (policy,) = [a for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"].startswith("default-src 'none'")


def test_hostile_names_are_shown_and_do_nothing(pair, tmp_path) -> None:
    name = HOSTILE.replace("/", "_")
    files = [f"{name}_0", f"{name}_1", "b_0", "\udcff_1"]  # the last is no text
    data = noise(tmp_path, files, ("sky", HOSTILE, "land"))
    student, teacher = (replace(model, name=HOSTILE) for model in pair)
    found = gather(student, data, teacher=teacher, preprocessing=PICTURES)
    found = replace(
        found,
        recipe=f"</pre>{HOSTILE}",
        environment={HOSTILE: HOSTILE},
        commands={HOSTILE: HOSTILE},
    )
    text = render(
        replace(found, latency={**LATENCY, "engines": {HOSTILE: LATENCY["engines"]["torch"]}})
    )
    made = Page(text)
    assert "script" not in {tag for tag, _ in made.tags}
    assert not [a for _, a in made.tags if "onerror" in a]
    assert "{{ 7*7 }}" in made.words
    assert "49" not in made.words.split()
    assert "<script>alert(1)</script>" in made.words
    write_page(tmp_path / "page.html", text)
    assert Page((tmp_path / "page.html").read_text()).ids >= FIGURES


def test_without_a_teacher_times_and_worlds_the_page_says_so(pair, tmp_path) -> None:
    data = noise(tmp_path, ["0"])
    made = Page(render(gather(pair[0], data, shown=1, preprocessing=PICTURES)))
    assert made.ids >= FIGURES
    for wanted in ("No teacher was given", "nothing to overlap with", "carries no recipe"):
        assert wanted in made.words
    assert sum(tag == "img" for tag, _ in made.tags) == 3
    assert " ms" not in made.words


def test_a_page_is_written_whole_or_not_at_all(tmp_path) -> None:
    target = tmp_path / "new" / "page.html"
    write_page(target, "first")
    write_page(target, "second")
    assert target.read_text() == "second"
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]
    with pytest.raises(OutputError, match="cannot be written"):
        write_page(target / "page.html", "below a file")
