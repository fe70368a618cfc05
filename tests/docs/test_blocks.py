"""Every block of code of every page is run, read by what reads it, or says why not.

Python runs from top to bottom of its page, in a directory with a data set, a model and a recipe.
Commands are read by the command line's own parser, and not run: pages that a test of their own
follows word for word (it names the page) are run there.
"""

import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import typer
import yaml
from dynprune.cli.main import app

from dynprune.recipe import parse_recipe

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs"
PAGES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.md"))

NOT_RUN: dict[str, int] = {"tutorials/production.md": 1}
"""How many blocks of a page stand under a comment ``<!-- not run: reason -->``."""

READ = {"json", "mermaid", "python", "text", "yaml"}
_COMMAND = re.compile(
    r"^ {4}(?!\S+ = )(?P<line>(?:\w+=\S+ )*(?:dynprune|accelerate|torchrun|python3?) .+)$",
    flags=re.MULTILINE,
)


def followed_elsewhere(page):
    """Whether a test of its own runs the page."""
    parts = " / ".join(f'"{part}"' for part in ("docs", *page.split("/")))
    others = (path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__))
    texts = [path.read_text("utf-8") for path in others]
    return any(parts in text or f'"docs/{page}"' in text for text in texts)


def commands_of(text):
    """The command lines of indented blocks, each on one line, without comments."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    joined = re.sub(r" *\\\n +", " ", plain)
    return [found["line"] for found in _COMMAND.finditer(joined) if "[OPTIONS]" not in found[0]]


def parse(line):
    """Read a command line as the program that it calls would, as far as it is ours."""
    words = [word for word in shlex.split(line, comments=True) if not word.startswith("${")]
    while "=" in words[0]:
        words = words[1:]
    if words[0] in ("accelerate", "torchrun"):
        words = words[words.index("dynprune.cli.main") :]
    elif words[0].startswith("python"):
        script = words[2].replace(".", "/") if words[1] == "-m" else words[1]
        places = (ROOT / script, ROOT / f"{script}.py")
        assert any(place.exists() for place in places), line
        return
    command, rest = typer.main.get_command(app), words[1:]
    while getattr(command, "commands", None) and rest and not rest[0].startswith("-"):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(words[0], list(rest))  # reads and checks every word, and runs nothing


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_understood(page):
    for line in commands_of((FOLDER / page).read_text("utf-8")):
        parse(line)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("dynprune evil run", "evil"),
        ("dynprune eval run --dta x", "No such option"),
        ("dynprune eval run --data", "requires an argument"),
        ("dynprune eval --data x", "Missing"),
        ("python benchmarks/no.py", r"no\.py"),
    ],
)
def test_a_command_that_is_wrong_would_be_found(line, complaint):
    with pytest.raises(Exception, match=complaint):
        parse(line)


@pytest.fixture
def with_model(tiny):
    """The directory of `tiny`, with the names that pages give a model and a data set."""
    from dynprune.models import build
    from dynprune.models.pretrained import write_pretrained
    from dynprune.models.source import ModelSource

    (tiny / "data").rename(tiny / "streets")
    model = yaml.safe_load((tiny / "tiny.yaml").read_text())["model"]
    source = ModelSource("transformers", architecture=model["architecture"], config=model["config"])
    write_pretrained(build(source, seed=0), tiny / "my-segformer")
    return tiny


def test_every_block_of_python_runs_after_those_before_it(blocks, with_model):
    names: dict[str, dict[str, object]] = {}
    for block in blocks:
        if block.language == "python" and not block.reason and not followed_elsewhere(block.page):
            code = compile("\n" * (block.line - 1) + block.code, f"docs/{block.page}", "exec")
            exec(code, names.setdefault(block.page, {"__name__": "page"}))  # errors name the line
    assert {"index.md", "data.md", "howto/recipes.md", "howto/gpus.md"} <= names.keys()


def test_every_block_of_yaml_and_json_is_read_by_what_reads_it(blocks):
    for block in blocks:
        if block.reason:
            continue
        if block.language == "yaml":
            if "schema" in yaml.safe_load(block.code):
                parse_recipe(block.code, origin=f"docs/{block.page}:{block.line}")
        elif block.language == "json":
            json.loads(block.code)


def test_every_diagram_is_one(blocks):
    mermaidx = pytest.importorskip("mermaidx", reason="diagrams are drawn by the extra docs")
    diagrams = [block for block in blocks if block.language == "mermaid"]
    assert diagrams
    assert all("<svg" in mermaidx.render(block.code).svg() for block in diagrams)


def test_every_block_says_what_it_is(blocks):
    """A block in a language that nothing here reads would never be run."""
    assert [block for block in blocks if block.language not in READ] == []


def test_blocks_that_are_not_run_are_counted_and_say_why(blocks):
    reasons = [block for block in blocks if block.reason is not None]
    assert Counter(block.page for block in reasons) == NOT_RUN
    assert all(len(block.reason.split()) > 2 for block in reasons)
