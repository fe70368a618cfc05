"""A file is there whole and good, or not at all."""

import contextlib
from pathlib import Path

import pytest

from dynprune.errors import OutputError
from dynprune.export.atomic import atomic_file


def test_the_file_and_its_companions_move_into_place(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "deep" / "model.xml") as place:
        place.write_text("xml")
        place.with_suffix(".bin").write_text("bin")
        assert list((tmp_path / "deep").glob("model*")) == []
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["model.bin", "model.xml"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with contextlib.suppress(KeyError), atomic_file(path, overwrite=True) as place:
        place.write_text("new")
        raise KeyError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_an_existing_file_is_overwritten_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(OutputError, match="exists; choose another"), atomic_file(path):
        pass
    with atomic_file(path, overwrite=True) as place:
        place.write_text("new")
    assert path.read_text() == "new"


def test_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a directory"), atomic_file(tmp_path, overwrite=True):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"Cannot write to .*model\.onnx"),
        atomic_file(tmp_path / "file" / "model.onnx"),
    ):
        pass
