"""`dynprune check` on a gated model, a dense one and a broken one."""

import pytest

from dynprune.laws import Verdict
from dynprune.pipeline import CheckReport


@pytest.fixture
def verdicts(monkeypatch):
    """Make the laws' verdicts, so that a command is tried without them."""

    def set_to(*found):
        def check_model(loaded, calls, *, export=False, progress=None):
            progress(len(found), len(found))
            return CheckReport(loaded.name, found)

        monkeypatch.setattr("dynprune.pipeline.check_model", check_model)

    return set_to


def test_a_gated_model_is_held_to_every_law(run, gated, data):
    outcome = run("check", gated, "--data", data, "--json")
    laws = {law["name"]: law for law in outcome.document["laws"]}
    assert laws["compact equals masked"]["status"] == "ok"
    assert laws["padded rows"]["status"] == "not tried"
    assert laws["padded rows"]["detail"].startswith("the model takes no mask")


def test_a_broken_law_exits_with_5_after_the_report(run, gated, verdicts):
    verdicts(Verdict("rows alone", held=3), Verdict("threads", broken=["4 threads: 1 apart"]))
    outcome = run("check", gated, "--json", code=5)
    assert [law["status"] for law in outcome.document["laws"]] == ["ok", "broken"]
    assert "breaks 1 of 2 laws that its dense form has: threads" in outcome.err


def test_people_get_a_table(run, gated, verdicts):
    verdicts(Verdict("rows alone", held=3), Verdict("threads", excused=["no threads here"]))
    outcome = run("check", gated)
    assert "rows alone  ok         3 comparisons" in outcome.out
    assert "threads     not tried  no threads here" in outcome.out
    assert "2 laws (1 ok, 1 not tried)" in outcome.out
    assert run("check", gated, "-q").err == ""
