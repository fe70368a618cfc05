"""The site is built without a complaint, has every page, and asks no network for anything."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the site is built by the extra docs")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs"


def hooks():
    """What turns pages into the site's."""
    spec = importlib.util.spec_from_file_location("site_hooks", FOLDER / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Requests(HTMLParser):
    """Collects what a browser fetches by itself to show a page, and where its links lead."""

    def __init__(self):
        super().__init__()
        self.fetched, self.links = [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "a":
            self.links.append(values.get("href") or "")
        elif tag == "link" and values.get("rel") in ("canonical", "next", "prev"):
            return
        else:
            self.fetched += [values[key] for key in ("src", "href", "srcset") if values.get(key)]


def read(page):
    parser = Requests()
    parser.feed(page.read_text("utf-8"))
    return parser


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(place)]
    # No proxy answers at this address: a request to anywhere would fail.
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    built = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return place


def test_every_page_is_on_the_site(site):
    pages = [path for kind in ("md", "ipynb") for path in FOLDER.rglob(f"*.{kind}")]
    missing = [
        p for p in pages if not (site / p.relative_to(FOLDER)).with_suffix(".html").is_file()
    ]
    assert missing == []


def test_nothing_is_fetched_from_a_network(site):
    outside = re.compile(r"^(https?:)?//")
    for page in site.rglob("*.html"):
        assert [url for url in read(page).fetched if outside.match(url)] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s*)['\"]?(https?:)?//", sheet.read_text("utf-8")), (
            sheet
        )


def test_every_link_leads_to_a_file_and_every_anchor_to_a_place_in_it(site):
    places = {}

    def anchors(page):
        if page not in places:
            places[page] = set(re.findall(r'\bid="([^"]+)"', page.read_text("utf-8")))
        return places[page]

    wrong = []
    for page in site.rglob("*.html"):
        for link in read(page).links if page.name != "404.html" else ():
            path, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link) or not link:
                continue
            target = (page.parent / path).resolve() if path else page
            if not target.is_file() or (
                anchor and target.suffix == ".html" and anchor not in anchors(target)
            ):
                wrong.append((page.name, link))
    assert wrong == []


def test_every_public_name_is_in_the_reference(site):
    import dynprune

    shown = set(re.findall(r'id="([^"]+)"', (site / "reference/api/dynprune.html").read_text()))
    assert {f"dynprune.{name}" for name in dynprune.__all__} <= shown


def test_search_finds_what_the_pages_say_without_a_server(site):
    text = (site / "search" / "search_index.js").read_text("utf-8")
    index = json.loads(text.removeprefix("var __index = "))
    assert any("least-squares" in entry["text"] for entry in index["docs"])
    first = (site / "index.html").read_text("utf-8")
    assert "assets/iframe-worker.js" in first


def test_a_folder_in_the_navigation_stands_for_its_pages_but_those_named_elsewhere(tmp_path):
    for name in ("b.md", "a.md", "c.ipynb", "d.json"):
        (tmp_path / "notes").mkdir(exist_ok=True)
        (tmp_path / "notes" / name).touch()
    nav = [{"Start": "notes/b.md"}, {"Notes": "notes/"}, {"All": [{"In": "notes/"}, "x.md"]}]
    notes = ["notes/a.md", "notes/c.md"]
    assert hooks().expanded(nav, tmp_path) == [
        {"Start": "notes/b.md"},
        {"Notes": notes},
        {"All": [{"In": notes}, "x.md"]},
    ]


def test_a_link_to_a_file_that_is_no_page_becomes_its_name():
    named = hooks().named
    assert named("[gpu.py](../../benchmarks/gpu.py)", "results") == "`benchmarks/gpu.py`"
    assert named("[a recipe](../recipes/any.yaml)", "") == "a recipe (`recipes/any.yaml`)"
    assert named("[x](../data.md#a)", "results") == "[x](../data.md#a)"


def test_a_notebook_becomes_a_page_with_its_code():
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "Text."]},
        {"cell_type": "code", "source": ["x = 1\n", "x"]},
    ]
    page = hooks().page_of({"cells": cells}, "x.ipynb")
    assert page.startswith(
        "# Title\n\nText.\n\n*This page is the notebook `docs/notebooks/x.ipynb`"
    )
    assert page.endswith("```python\nx = 1\nx\n```\n")
