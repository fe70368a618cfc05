"""The rows of the accuracy page are recipes that load, and results become tables."""

import json

import pytest

from benchmarks.evidence.rows import DATASETS, ROWS, find_row
from benchmarks.evidence.run import row_recipe
from benchmarks.evidence.table import BEGIN, END, update_page
from dynprune.recipe import load_recipe

EACH = [(row, dataset) for row in ROWS for dataset in row.datasets]


@pytest.mark.parametrize(("row", "dataset"), EACH, ids=lambda part: getattr(part, "name", part))
def test_every_row_is_a_recipe_with_the_same_budget(row, dataset):
    recipe = row_recipe(row, dataset, seed=3)
    budget = load_recipe(row.recipe(dataset))
    assert recipe.runtime.seed == 3
    for part in ("steps", "lr_schedule", "data"):
        assert getattr(recipe, part) == getattr(budget, part)
    assert recipe.runtime.model_copy(update={"seed": 0}) == budget.runtime


def test_rows_have_names_of_their_own_in_every_data_set():
    for dataset in DATASETS:
        names = [row.name for row in ROWS if dataset in row.datasets]
        assert len(set(names)) == len(names)
    assert find_row("teacher", "camvid") is ROWS[0]
    assert find_row("none", "camvid") is None


def result(row, seed, miou, **changes):
    return {
        "row": row,
        "dataset": "camvid",
        "seed": seed,
        "miou": miou,
        "macs": 2_000_000_000,
        "overlap": None,
        "per_class": {"sky": miou, "unseen": None},
        "per_world": {},
        "overlap_per_group": {},
        "gates": {"parameters": 0, "macs": 0},
        "parameters": 10,
        "steps": 4,
        "seconds": 60.0,
        "peak_memory_mb": 1024,
        **changes,
    }


def test_tables_take_the_mean_over_seeds_and_leave_prose_alone(tmp_path):
    overlap = {"all": 0.9, "same_world": None, "different_worlds": None}
    for record in (
        result("teacher", 0, 0.5, macs=4_000_000_000),
        result("distilled-50", 0, 0.4, overlap=overlap),
        result("distilled-50", 1, 0.6, overlap=overlap),
    ):
        name = f"{record['row']}-{record['seed']}.json"
        (tmp_path / name).write_text(json.dumps(record))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    update_page(page, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    line = next(line for line in text.splitlines() if "`distilled-50`" in line and "±" in line)
    for part in ("0.5000 ± 0.1414", "+0.00", "2.000", "50.0%", "0.900", "| 1.0 |"):
        assert part in line
    update_page(page, tmp_path)
    assert page.read_text() == text
