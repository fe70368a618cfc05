"""A ratio that falls too far fails the check, and rows become a table."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.latency import (
    FORMS,
    ROWS,
    TOLERANCE,
    fallen,
    in_order,
    main,
    page,
    row_name,
    scatter,
    table,
)
from dynprune.recipe import load_recipe


def row(speedup: float, *, high: float = 10.5) -> dict[str, Any]:
    times: dict[str, Any] = {f"{form}_ms": 10.0 for form in FORMS}
    times["quartiles_ms"] = {"dense": [9.9, 10.1], "rewritten": [9.9, 10.1], "pruned": [9.5, high]}
    return {
        "row": "b2-50",
        "machine": "x86_64",
        "torch": "2",
        "threads": 2,
        "runs": 15,
        "input": [1, 3, 512, 512],
        "macs": dict.fromkeys(FORMS, 2 * 10**9),
        "peak_mb": dict.fromkeys(FORMS, 100.0),
        "engines": {"torch": {**times, "speedup": speedup, "efficiency": 0.9}},
    }


def test_a_ratio_may_fall_by_the_tolerance_and_no_further() -> None:
    before = row(4.0)
    assert not fallen(row(4.0 * (1 - TOLERANCE) + 0.01), before)
    (problem,) = fallen(row(4.0 * (1 - TOLERANCE) - 0.01), before)
    assert problem.startswith("b2-50, torch: 3.39, was 4.00")
    assert not fallen(row(9.0), before)


def test_a_row_becomes_a_line_for_each_engine() -> None:
    assert "| b2-50 | 1x3x512x512 | torch | 10.0 | 10.0 | 10.0 | **4.00** |" in table([row(4.0)])
    assert "on x86_64, 2 threads" in page([row(4.0)])


def test_rows_are_listed_in_order_those_with_cores_apart_behind_their_own() -> None:
    names = ["b0-50", row_name("b2-50", "apart"), row_name("b2-50", "together")]
    known = {name: row(4.0) | {"row": name} for name in names}
    assert [found["row"] for found in in_order(known)] == ["b2-50", "b2-50-apart", "b0-50"]


def test_a_rows_scatter_is_that_of_its_least_steady_form() -> None:
    assert scatter(row(4.0, high=12.5)) == pytest.approx(0.3)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_recipe_that_loads(name: str) -> None:
    found = ROWS[name]
    recipe = load_recipe(found.recipe, [f"sparsity.final={found.ratio}", *found.overrides])
    assert recipe.model.architecture is not None


def test_an_unknown_row_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["latency.py", "b9-50"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "no row is called b9-50; there are: b2-50," in capsys.readouterr().err


def test_every_row_has_a_process_of_its_own_and_is_written_as_it_comes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command[2:4])
        measured = row(4.0) | {"row": command[2]}
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps(measured))

    monkeypatch.setattr("benchmarks.latency.subprocess.run", run)
    arguments = ["latency.py", "b2-50", "b0-50", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 0
    assert commands == [["b2-50", "--row"], ["b0-50", "--row"]]
    stored = json.loads((tmp_path / "latency.json").read_text())
    assert [found["row"] for found in stored] == ["b2-50", "b0-50"]
    assert "| b0-50 |" in (tmp_path / "latency.md").read_text()
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    assert main() == 0
    worse = [found | {"engines": row(9.0)["engines"]} for found in stored]
    (tmp_path / "latency.json").write_text(json.dumps(worse))
    assert main() == 1
