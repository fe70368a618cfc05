"""What README shows, runs; what it names, exists."""

import re
from pathlib import Path

import pytest
from dynprune.cli.main import app
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    dynprune (.+)$", TEXT, flags=re.MULTILINE)


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert "compact" in capsys.readouterr().out
    assert (tmp_path / "gated" / "model.safetensors").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_every_option_of_it_exists(command):
    words = command.split("#")[0].split()
    verb = words[:2] if words[0] in ("report", "recipe") else words[:1]
    result = CliRunner().invoke(app, [*verb, "--help"])
    assert result.exit_code == 0, result.output
    options = [word for word in words if word.startswith("-")]
    assert all(option in result.output for option in options)


@pytest.mark.parametrize("page", ["README.md", "recipes/README.md", "CONTRIBUTING.md"])
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert missing in ([], ["docs/images/demo.png"])  # the picture comes from a run of the demo
