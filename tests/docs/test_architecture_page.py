"""docs/architecture.md names files and functions that are there, and the rooms in their order."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
TEXT = PAGE.read_text(encoding="utf-8")
TREE, _, PLACES = TEXT.partition("## Where is what")
ROWS = re.findall(r"^\| (.+?) \| `([\w/.]+\.py)` \| (.+?) \|$", PLACES, flags=re.MULTILINE)


def order_of_imports():
    """The list that tests/test_architecture.py enforces, read from its text."""
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER":
            return ast.literal_eval(node.value)
    raise AssertionError("tests/test_architecture.py has no ORDER")


def names_in(body, prefix=""):
    """Every function, class, method and constant that a file defines, with dots."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from names_in(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign):
            yield from (prefix + ast.unparse(target) for target in node.targets)
        elif isinstance(node, ast.AnnAssign):
            yield prefix + ast.unparse(node.target)


def test_the_rooms_stand_in_the_order_of_imports():
    assert re.findall(r"^\| `(\w+)` \| ", TREE, flags=re.MULTILINE) == order_of_imports()


def test_at_least_25_behaviours_have_a_place_of_their_own():
    assert len(ROWS) >= 25
    assert len({behaviour for behaviour, _, _ in ROWS}) == len(ROWS)
    assert len(ROWS) == PLACES.count("\n| ") - 1  # every row is read, but for the table's head


@pytest.mark.parametrize(("behaviour", "file", "names"), ROWS, ids=[row[0] for row in ROWS])
def test_a_behaviour_is_where_the_page_says(behaviour, file, names):
    defined = set(names_in(ast.parse((ROOT / file).read_text(encoding="utf-8")).body))
    wanted = re.findall(r"`([\w.]+)`", names)
    assert wanted
    assert not set(wanted) - defined


def test_a_name_that_is_not_there_would_be_found():
    found = set(names_in(ast.parse("A = 1\nclass B:\n    def c(self): ...\n").body))
    assert found == {"A", "B", "B.c"}


@pytest.mark.parametrize("way", ["flowchart", "sequenceDiagram"])
def test_the_ways_of_a_model_and_of_a_call_are_drawn(way):
    assert f"```mermaid\n{way}" in TEXT
