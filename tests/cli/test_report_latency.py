"""`dynprune report latency`: the contract of its document."""

import math


def test_every_form_is_timed_and_the_ratios_follow_from_the_medians(run, gated, tmp_path):
    plot = tmp_path / "latency.png"
    options = ("--runs", 2, "--break-even", "--plot", plot, "--json")
    found = run("report", "latency", gated, *options).document
    assert found.keys() >= {"device", "threads", "batch", "runs", "engines"}
    assert found["runs"] == 2
    engine = found["engines"]["torch"]
    assert all(engine[f"{form}_ms"] > 0 for form in ("dense", "rewritten", "pruned"))
    assert math.isclose(engine["speedup"], engine["dense_ms"] / engine["pruned_ms"])
    assert engine["efficiency"] > 0
    assert found["break_even"]
    assert plot.stat().st_size > 1000


def test_the_table_names_threads_and_runs(run, gated):
    out = run("report", "latency", gated, "--runs", 1).out
    assert "speedup" in out
    assert "interleaved" in out


def test_an_unknown_engine_and_a_dense_model_without_a_recipe_are_refused(run, gated, dense):
    assert "tensorrt" in run("report", "latency", gated, "--engines", "tensorrt", code=2).err
    assert "--recipe" in run("report", "latency", dense, code=2).err


def test_a_broken_bound_ends_in_its_exit_code(run, gated):
    run("report", "latency", gated, "--runs", 1, "--fail-if", "engines.torch.speedup<1000", code=5)
