"""`report all` writes one page, tells its figures, and refuses what it cannot show."""

import json

import pytest


@pytest.fixture(scope="module")
def arguments(gated, dense, data):
    base = ("report", "all", gated, "--data", data, "--teacher", dense)
    return (*base, "--shown", 1, "--engines", "")


def test_the_page_is_written_and_its_figures_are_told(run, arguments, gated, tmp_path):
    target = tmp_path / "made" / "page.html"
    times = tmp_path / "latency.json"
    keys = ("dense_ms", "rewritten_ms", "pruned_ms", "speedup", "efficiency")
    engines = {"torch": dict.fromkeys(keys, 1.5)}
    record = {"device": "cpu", "threads": 1, "batch": 1, "runs": 3, "engines": engines}
    times.write_text(json.dumps(record))
    found = run(*arguments, "-o", target, "--latency", times, "--json").document
    assert found["output"] == str(target)
    assert found["macs"]["dense"] > found["macs"]["pruned"]["executed"]["mean"]
    assert 0 <= found["miou"]["student"] <= 1
    assert found["miou"]["teacher"] is not None
    assert found["bytes"]["student"] == (gated / "model.safetensors").stat().st_size
    page = target.read_text()
    assert "figure-layers" in page
    assert "fold-decoder" in page  # the recipe
    assert "dynprune" in page
    assert "1.5 ms" in page
    assert page.count("<img ") == 4


def test_a_file_in_the_way_is_replaced_on_demand_alone_and_a_broken_bound_leaves_the_page(
    run, arguments, tmp_path
):
    target = tmp_path / "page.html"
    target.write_text("mine")
    assert "--overwrite" in run(*arguments, "-o", target, code=4).err
    assert "is a directory" in run(*arguments, "-o", tmp_path, code=4).err
    assert target.read_text() == "mine"
    bound = ("--overwrite", "--fail-if", "miou.student<=1")
    assert "miou.student" in run(*arguments, "-o", target, *bound, code=5).err
    assert "figure-layers" in target.read_text()


def test_times_are_measured_where_none_are_given(run, gated, data, tmp_path):
    arguments = ("report", "all", gated, "--data", data, "--shown", 0, "--images", 1)
    found = run(*arguments, "-o", tmp_path / "p.html", "--json").document
    times = found["latency"]["engines"]["torch"]
    assert f"{times['pruned_ms']:.1f} ms" in (tmp_path / "p.html").read_text()
    assert "abacus" in run(*arguments, "-o", tmp_path / "q.html", "--engines", "abacus", code=2).err


@pytest.mark.parametrize("text", ["{", "[]", '{"engines": {"torch": {}}}', '{"engines": 3}'])
def test_times_that_are_none_are_refused(run, arguments, tmp_path, text):
    times = tmp_path / "latency.json"
    times.write_text(text)
    message = run(*arguments, "-o", tmp_path / "p.html", "--latency", times, code=4).err
    assert "report latency --json" in message


def test_a_dense_model_is_refused_with_what_to_do(run, dense, data, tmp_path):
    message = run("report", "all", dense, "--data", data, "-o", tmp_path / "p.html", code=2).err
    assert "dynprune apply" in message
    assert not (tmp_path / "p.html").exists()
