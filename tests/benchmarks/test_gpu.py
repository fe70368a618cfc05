"""The GPU benchmark runs at tiny sizes on a CPU, checks every output, and tells what is wrong."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import gpu
from dynprune.example import Example
from dynprune.gate import GateConfig, plan_groups
from dynprune.graph import find_groups
from dynprune.rewrite import rewrite

FIGURES = 1e-5  # float32 sums in another order


def test_a_tiny_run_writes_checked_times_of_every_form(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--rows", "vit-l 32 x3", "--output", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["row"] == {"model": "vit-l", "side": 32, "batch": 3}
    assert not row["faults"]
    forms = ["dense", "fixed", "experts", "neurons"]
    for form in forms:
        assert row["ms"][f"{form} eager"] > 0
        assert row["error"][form] < FIGURES
    assert {"dense compiled", "fixed compiled", "experts compiled"} <= row["ms"].keys()
    assert row["weights_mb"]["fixed"] < row["weights_mb"]["dense"]
    assert "| vit-l 32 x3 |" in capsys.readouterr().out


def test_an_output_that_differs_from_the_masked_model_fails_the_run(monkeypatch, tmp_path, capsys):
    right = gpu.fix_groups

    def wrong(model, plans, kept):
        done = right(model, plans, kept)
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if "fc2" in n or "down" in n).mul_(3.0)
        return done

    monkeypatch.setattr(gpu, "fix_groups", wrong)
    assert gpu.main(["--tiny", "--rows", "vit-l 32 x1"]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize("row", [gpu.Row("vit-l", 32, 1), gpu.Row("b2", 64, 1)], ids=str)
def test_plans_of_one_block_are_those_that_the_whole_model_gets(row):
    depths = (3,) if row.model == "vit-l" else (1, 2, 1, 1)
    spread = gpu.plan_model(row, depths, tiny=True).groups
    model = gpu.build(row, depths, tiny=True)
    example = Example((torch.randn(1, 3, row.side, row.side),))
    rewrite(model, example, ("fold-decoder",))
    groups = find_groups(model, example).groups
    config = GateConfig(prune_ratio=gpu.RATIO, align=gpu.ALIGN, order="fixed")
    whole = plan_groups(model, example, groups, {group.name: config for group in groups})
    wanted = {p.group.name: p.to_json() for p in whole if p.mode == "compact"}
    assert {p.group.name: p.to_json() for p in spread} == wanted


def test_ratios_are_to_the_compiled_folded_form():
    result = gpu.Result(gpu.ROWS[0], ms={"folded compiled": 3.0, "fixed compiled": 2.0})
    assert "| 1.50 |" in gpu.table([result])
    assert "WRONG" not in gpu.table([result])
    assert "WRONG" in gpu.table([replace(result, error={"fixed": 0.5})])


def test_every_model_side_and_batch_is_measured_once():
    rows = {(row.model, row.side, row.batch) for row in gpu.ROWS}
    sides = {"b2": (512, 1024), "b5": (512, 1024), "vit-l": (224, 518)}
    assert rows == {(m, side, b) for m, both in sides.items() for side in both for b in (1, 8, 32)}
    assert len(gpu.ROWS) == len(rows)
