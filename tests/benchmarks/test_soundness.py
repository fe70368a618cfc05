"""What the soundness page counts, and that a trial of one model tells every law."""

import pytest

from benchmarks.soundness import EVERY_LAW, SETTINGS, models, page, summary, told, try_model


def law(name, **counts):
    empty = {"held": 0, "ties": 0, "broken": [], "refused": [], "excused": []}
    found = {**empty, **counts}
    status = "broken" if found["broken"] else "ok" if found["held"] else "not tried"
    compared = found["held"] + len(found["broken"])
    return {"name": name, "status": status, "comparisons": compared, **found}


def record(model, *laws, **more):
    groups = [
        {"name": "a", "kind": "ffn", "mode": "compact", "reason": None},
        {"name": "b", "kind": "v", "mode": "refused", "reason": "layer.0.out reads them 2 times"},
    ]
    return {
        "model": model,
        "setting": "calibrated",
        "cpu_seconds": 1.0,
        "groups": groups,
        "laws": list(laws),
        **more,
    }


RECORDS = [
    record("one", law("rows alone", held=3, ties=1), law("threads", broken=["4 threads: 1 apart"])),
    record("two", law("rows alone", held=2), law("threads", refused=["4 threads: not here"])),
    record("three", refused="nothing can be gated", groups=[]),
    record("four", crashed="KeyError: 'x'", groups=[]),
]


def test_comparisons_are_counted_by_law_and_nothing_wrong_is_lost():
    found = summary(RECORDS)
    assert (found["models"], found["comparisons"], found["broken"]) == (4, 6, 1)
    assert found["laws"]["rows alone"]["comparisons"] == 5
    assert found["laws"]["rows alone"]["ties"] == 1
    assert found["broken_cases"] == {"threads": ["one (calibrated): 4 threads: 1 apart"]}
    assert found["refused_calls"] == {"not here": 1}
    assert found["crashed"] == ["four: KeyError: 'x'"]
    assert found["refused_models"] == ["three: nothing can be gated"]


def test_like_reasons_are_counted_together():
    assert summary(RECORDS)["refused_groups"] == {"… reads them … times": 2}


def test_the_page_shows_every_law_and_what_is_wrong():
    text = page(summary(RECORDS))
    assert "**1 wrong**, 1 crashes" in text
    assert "| rows alone | 2 | 5 | 1 | 0 | 0 | 0 |" in text
    assert "- threads: one (calibrated): 4 threads: 1 apart" in text
    assert all(f"| {name} |" in text for name in EVERY_LAW)


def test_a_trial_is_told_in_a_few_lines():
    assert told(RECORDS[0]).splitlines()[1] == "    broken: threads: 4 threads: 1 apart"
    assert "CRASHED KeyError" in told(RECORDS[3])


@pytest.mark.filterwarnings("ignore")
def test_a_model_is_tried_by_every_law_and_a_refused_one_by_none():
    found = try_model("dlrm", "straight-through")
    assert [law["name"] for law in found["laws"]] == list(EVERY_LAW)
    assert sum(law["held"] for law in found["laws"]) > 50
    assert "No neuron group" in try_model("gmlp", "straight-through")["refused"]


def test_the_zoo_is_as_wide_as_is_said():
    assert len(models()) > 80
    assert set(SETTINGS) == {"calibrated", "straight-through"}
