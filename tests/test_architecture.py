"""The shape of the source tree, enforced: who imports whom, what is banned, module length."""

import ast
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom to the top; a module may import what stands before it, and its own line.
ORDER = """
errors
example fastpath modes replace
graph
rewrite
gate
schedule
penalty
recipe recipes
files
inputs
declared
pretrained
models provenance card storage
logits
data
evaluate embedding
predict
distill
report
export
recipe.build
removal choose distribute planning
pipeline
api
demo
__init__
cli
"""
RANK = {name: rank for rank, line in enumerate(ORDER.split("\n")) for name in line.split()}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "core", "base"}
BANNED_IMPORTS = {"torchvision", "timm", "pickle", "cloudpickle", "dill", "shelve", "marshal"}
TERMINAL = {"typer", "rich", "click"}
LONGEST = 400

MODULES = sorted(
    path
    for folder in ("dynprune", "cli", "recipes")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
PYTHON = MODULES + sorted(
    path
    for folder in ("tests", "benchmarks", "docs")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)


def show(path):
    return str(path.relative_to(ROOT))


@lru_cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path):
    """The dotted name under which a source file is imported."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ("cli", "recipes"):
        parts.insert(0, "dynprune")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Absolute dotted names of everything that a file imports, wherever in it."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rank(name):
    """Place of a dynprune module in the order; None for what is not one."""
    package, *parts = name.split(".")
    if package != "dynprune" or not _is_module(parts):
        return None
    if not parts:
        return RANK["__init__"]
    # recipe.build has a line of its own: the translator knows all that it translates to.
    return RANK.get(".".join(parts[:2]), RANK.get(parts[0]))


def _is_module(parts):
    folder = ROOT if parts[:1] in (["cli"], ["recipes"]) else ROOT / "dynprune"
    place = folder.joinpath(*parts)
    return place.is_dir() or place.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_every_module_has_a_place_in_the_order_of_imports(path):
    assert rank(name_of(path)) is not None


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_imports_flow_one_way(path):
    own = rank(name_of(path))
    found = {name: rank(name) for name in imports_of(path) if name != "dynprune"}
    assert not [name for name, place in found.items() if place is not None and place > own]


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_only_the_command_line_imports_typer_and_rich(path):
    if not name_of(path).startswith("dynprune.cli"):
        assert not {found.split(".")[0] for found in imports_of(path)} & TERMINAL


@pytest.mark.parametrize("path", PYTHON, ids=show)
def test_no_module_imports_what_is_banned(path):
    assert not {found.split(".")[0] for found in imports_of(path)} & BANNED_IMPORTS


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_nothing_is_unpickled_evaluated_or_executed(path):
    calls = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            calls.add(ast.unparse(node.func))
    assert not calls & {"eval", "exec", "compile", "__import__", "torch.load", "torch.save"}


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_the_library_never_prints(path):
    calls = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.Call)]
    if not name_of(path).startswith("dynprune.cli"):
        assert not [n.lineno for n in calls if ast.unparse(n.func) == "print"]


@pytest.mark.parametrize("path", PYTHON, ids=show)
def test_no_module_is_named_for_nothing(path):
    assert path.stem not in BANNED_NAMES
    assert not set(path.relative_to(ROOT).parts) & BANNED_NAMES


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_every_module_states_its_idea_and_is_not_too_long(path):
    docstring = ast.get_docstring(tree_of(path))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
