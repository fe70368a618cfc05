"""Every package's `__init__` re-exports a sorted, complete list and does nothing else."""

import ast
import importlib

import pytest

from tests.test_architecture import MODULES, name_of, show

PACKAGES = [path for path in MODULES if path.name == "__init__.py"]
EXPORTING = [path for path in MODULES if "__all__" in path.read_text(encoding="utf-8")]


def names_in_all(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            return ast.literal_eval(node.value)
    return []


@pytest.mark.parametrize("path", PACKAGES, ids=show)
def test_a_package_lists_everything_that_it_imports(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dynprune")
        for alias in node.names
    }
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert imported - read <= set(names_in_all(path))


@pytest.mark.parametrize("path", EXPORTING, ids=show)
def test_every_listed_name_exists_and_the_list_is_sorted(path):
    listed = names_in_all(path)
    assert len(listed) == len(set(listed))
    # As ruff sorts them: constants, then classes, then functions.
    assert listed == sorted(listed, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    module = importlib.import_module(name_of(path))
    missing = [name for name in listed if not hasattr(module, name)]
    assert not missing
