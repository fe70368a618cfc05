"""What docs/python.md shows, runs, from top to bottom."""

import re
from pathlib import Path

import dynprune

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_every_block_of_the_page_runs_after_those_before_it(tmp_path, monkeypatch, capsys):
    text = PAGE.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in re.finditer(r"```python\n(.*?)```", text, flags=re.DOTALL):
        lines = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines + block[1], str(PAGE), "exec"), names)  # errors name the line
    shown = capsys.readouterr().out
    assert "fc1 ffn 256 compact" in shown
    assert "128 of 256 neurons kept" in shown
    assert "match no neuron group" in shown


def test_every_public_function_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    functions = [name for name in dynprune.__all__ if name[0].islower()]
    assert all(f"dynprune.{name}(" in text for name in functions)


def test_every_link_of_the_page_leads_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGE.read_text(encoding="utf-8"))
    assert links
    assert all((PAGE.parent / link).exists() for link in links)
