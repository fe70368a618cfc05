"""docs/reference/json.md names the keys that commands write, all of them and no others."""

import json
import re
from pathlib import Path

from dynprune.cli.main import app
from typer.testing import CliRunner

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "json.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, flags=re.DOTALL | re.MULTILINE))


def documented(command):
    """The keys in the first column of a command's table."""
    rows = re.findall(r"^\| (`.+?) \|", SECTIONS[command], flags=re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def leaves(value, path=""):
    """The paths of a document's values, every element of a list as ``[]``."""
    if isinstance(value, dict) and value and path != "preprocessing":
        for key, below in value.items():
            yield from leaves(below, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield from leaves(item, f"{path}[]")
    else:
        yield f"{path}[]" if isinstance(value, list) else path


def differences(command, document):
    """Keys that the page lacks, and keys that the document lacks."""
    names = documented(command)
    patterns = {
        name: re.compile(re.sub(r"\\\{[A-Z]+\\\}", r".+", re.escape(name))) for name in names
    }
    found = set(leaves(document))
    unnamed = {path for path in found if not any(p.fullmatch(path) for p in patterns.values())}
    unmet = {name for name, p in patterns.items() if not any(map(p.fullmatch, found))}
    return unnamed, unmet


def run(*arguments):
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_key_that_a_command_writes_is_on_the_page_and_the_other_way_round(tiny):
    recipe = ("--recipe", "tiny.yaml")
    data = ("--data", "data")
    wrong = {}

    def hold(command, *arguments):
        unnamed, unmet = differences(command, run(*command.split(), *arguments))
        if unnamed or unmet:
            wrong[command] = {"not on the page": unnamed, "not written": unmet}

    hold("apply", *recipe, *data, "--weights", "random", "-o", "gated")
    hold("inspect", "gated")
    hold("eval", "gated", *data)
    hold("predict", "gated", "data/images/val/0.png", "-o", "seen")
    hold("report flops", "gated")
    hold("report neurons", "gated", *data)
    hold("report latency", "gated", "--engines", "torch", "--runs", "2")
    assert wrong == {}


def test_a_key_that_is_missing_on_either_side_would_be_found():
    document = {"unit": "MAC", "input": [1, 2], "new": {"key": None}}
    unnamed, unmet = differences("report flops", document)
    assert unnamed == {"new.key"}
    assert "params.pruned" in unmet
    assert "unit" not in unmet
    assert "input[]" not in unmet
