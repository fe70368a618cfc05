"""The generated pages are current, and say something of every key and option."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs"


def generator():
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "recipes.md"])
def test_a_generated_page_is_what_its_source_gives_now(name):
    written = (FOLDER / name).read_text(encoding="utf-8")
    assert written == generator().PAGES[name](), "run: python docs/generate.py"


def test_every_verb_and_every_section_has_its_heading():
    pages = generator().PAGES
    commands = pages["cli.md"]()
    for verb in ("inspect", "apply", "distill", "eval", "predict", "report flops", "recipe list"):
        assert f"## dynprune {verb}\n" in commands
    recipes = pages["recipes.md"]()
    for section in ("model", "apply.gate", "stages[i].losses[i]", "runtime"):
        assert f"### `{section}`" in recipes
