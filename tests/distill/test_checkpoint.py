"""Checkpoints: whole or absent, rotated, and never believed when damaged."""

import json
import logging
import os

import pytest
import torch

from dynprune.distill import Checkpoint, CheckpointStore
from dynprune.errors import InputError, OutputError


def checkpoint(step):
    generator = torch.Generator().manual_seed(step)
    shared = torch.randn(4, 3, generator=generator)
    tensors = {
        "model": {
            "tied": shared,
            "twin": shared,
            "turned": shared.t(),
            "count": torch.tensor(step),
            "half": shared.bfloat16(),
        },
        "optimizer": {"exp_avg:tied": shared * 2},
    }
    return Checkpoint(step, tensors, {"best": None, "seconds": 1.5})


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def test_what_is_read_is_what_was_saved(store):
    saved = checkpoint(7)
    path = store.save(saved)
    read = store.latest()
    assert read.step == 7
    assert read.path == path
    assert read.state == saved.state
    assert read.tensors.keys() == saved.tensors.keys()
    for file, tensors in saved.tensors.items():
        assert read.tensors[file].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(read.tensors[file][name], tensor)
            assert read.tensors[file][name].dtype == tensor.dtype


def test_the_latest_and_the_best_are_kept(store):
    for step in (1, 2):
        store.save(checkpoint(step))
    store.mark_best(2, "miou", 0.5)
    for step in (3, 4, 10):
        store.save(checkpoint(step))
    assert store.steps() == [2, 4, 10]
    assert store.best().name == "step-2"
    store.mark_best(10, "miou", 0.6)
    store.save(checkpoint(11))
    assert store.steps() == [10, 11]


def test_no_file_is_a_pickle(store):
    path = store.save(checkpoint(1))
    names = sorted(item.name for item in path.iterdir())
    assert names == ["model.safetensors", "optimizer.safetensors", "trainer.json"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "trainer.json"])
@pytest.mark.parametrize("damage", ["truncated", "absent", "empty", "flipped"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(store, file, damage, caplog):
    store.save(checkpoint(1))
    path = store.save(checkpoint(2)) / file
    data = path.read_bytes()
    if damage == "absent":
        path.unlink()
    elif damage == "flipped":
        middle = len(data) - 3
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :])
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    with caplog.at_level(logging.WARNING):
        assert store.latest().step == 1
    assert "step-2" in caplog.text
    assert "the checkpoint before it is used" in caplog.text


def test_an_unknown_format_is_refused(store):
    path = store.save(checkpoint(1))
    manifest = json.loads((path / "trainer.json").read_text())
    (path / "trainer.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(InputError, match="format 99, this version reads 1"):
        store.read(path)


def test_what_a_killed_write_left_behind_is_not_seen_and_is_swept_away(store):
    store.save(checkpoint(1))
    left = store.directory / ".writing-step-2"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (store.directory / ".writing-best.json").write_text("{")
    assert store.latest().step == 1
    store.save(checkpoint(3))
    assert sorted(p.name for p in store.directory.iterdir()) == ["step-1", "step-3"]


def test_a_step_saved_again_replaces_the_first(store):
    store.save(checkpoint(1))
    again = checkpoint(1)
    again.tensors["model"]["count"] = torch.tensor(99)
    store.save(again)
    assert store.latest().tensors["model"]["count"].item() == 99
    assert [p.name for p in store.directory.iterdir()] == ["step-1"]


def test_a_write_that_fails_leaves_the_checkpoints_before_it(store, monkeypatch):
    store.save(checkpoint(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"step-2: .*No space left on device"):
            store.save(checkpoint(2))
    assert [p.name for p in store.directory.iterdir()] == ["step-1"]
    assert store.latest().step == 1


def test_an_empty_or_foreign_directory_has_no_checkpoint(store):
    assert store.latest() is None
    assert store.best() is None
    (store.directory / "step-x").mkdir(parents=True)
    (store.directory / "best.json").write_text("[]")
    assert store.latest() is None
    assert store.best() is None
