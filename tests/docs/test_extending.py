"""What docs/extending.md shows, runs, from top to bottom; what it promises of a mistake, holds."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_every_block_of_the_page_runs_after_those_before_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "extending"}
    for block in re.finditer(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
        lines = TEXT.count("\n", 0, block.start(1))
        exec(compile("\n" * lines + block[1], str(PAGE), "exec"), names)  # errors name the line
    shown = capsys.readouterr().out
    assert "a predictor of their author's own (extending:Linear)" in shown
    assert "after step 5" in shown
    assert "passes through mine::squared_relu, of which nothing is known" in shown


def test_every_way_to_extend_has_its_heading():
    headings = set(re.findall(r"^## (.+)$", TEXT, flags=re.MULTILINE))
    assert headings == {
        "Importance",
        "Predictor",
        "Loss",
        "Rule",
        "Formula",
        "Layout",
        "Engine",
    }
