"""`report neurons` tells every group's neurons, for people and for scripts."""

from pathlib import Path

import pytest

from .conftest import CLASSES, HEIGHT, WIDTH, save


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Pictures of two worlds, of two kinds of noise."""
    import torch

    root = tmp_path_factory.mktemp("worlds")
    for part in ("images/val", "annotations/val"):
        (root / part).mkdir(parents=True)
    for index, name in enumerate(("dark_0", "dark_1", "bright_0", "bright_1")):
        noise = torch.randint(0, 100, (HEIGHT, WIDTH, 3)) + 150 * (index > 1)
        save(root / f"images/val/{name}.png", noise)
        save(root / f"annotations/val/{name}.png", torch.randint(0, CLASSES, (HEIGHT, WIDTH)))
    return root


def test_the_record_holds_every_gated_group(run, gated, data):
    found = run("report", "neurons", gated, "--data", data, "--json").document
    assert found["images"] == 2
    assert found["worlds"] == {}
    assert {group["kind"] for group in found["groups"]} == {"ffn", "qk", "v"}
    for group in found["groups"]:
        assert 0 < group["kept"] < group["neurons"]
        assert 0 <= group["overlap"]["all"] <= 1


def test_the_table_has_a_row_for_every_group_and_worlds_are_told_apart(run, gated, worlds):
    out = run("report", "neurons", gated, "--data", worlds).out
    assert ".mlp.fc1  " in out
    assert "same world" in out
    rows = [line.split()[:2] for line in out.splitlines()]
    pairs = [["bright", "bright"], ["bright", "dark"], ["dark", "dark"]]
    assert [row for row in rows if row in pairs] == pairs
    assert "neurons by type: I " in out


def test_a_single_picture_has_no_overlap(run, gated, data):
    document = run("report", "neurons", gated, "--data", data, "--images", 1, "--json").document
    assert document["overlap"] is None
    assert "mean overlap -" in run("report", "neurons", gated, "--data", data, "--images", 1).out


def test_a_dense_model_is_refused_with_what_to_do(run, dense, data):
    assert "apply" in run("report", "neurons", dense, "--data", data, code=2).err


def test_a_bound_on_the_overlap_can_be_set(run, gated, data):
    arguments = ("report", "neurons", gated, "--data", Path(data), "--fail-if", "overlap.all>0")
    assert "overlap.all is" in run(*arguments, code=5).err
