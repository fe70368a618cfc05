"""Pictures in folders: classes have one index whatever the split shows, and nothing is guessed."""

import pytest
import torch
from PIL import Image

from dynprune.data.folders import held_out, is_image_folder, open_image_folder, open_pictures
from dynprune.errors import InputError


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.zeros(4, 4, 3, dtype=torch.uint8).numpy()).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    for split, names in (("train", ("ant", "bee", "cow")), ("val", ("ant", "cow"))):
        for name in names:
            for index in range(2):
                write(tmp_path / split / name / f"{index}.png")
    return tmp_path


def test_a_class_that_a_split_lacks_keeps_its_index(root):
    train, val = (open_image_folder(root, split) for split in ("train", "val"))
    assert train.classes == val.classes == ("ant", "bee", "cow")
    assert val.labels == (0, 0, 2, 2)
    assert [path.parent.name for path in val.images] == ["ant", "ant", "cow", "cow"]


def test_hidden_files_and_others_are_no_pictures(root):
    (root / "val/ant/notes.txt").write_text("not a picture")
    (root / "val/ant/.hidden.png").write_bytes(b"")
    (root / "val/.cache").mkdir()
    assert len(open_image_folder(root, "val")) == 4


def test_a_split_that_is_not_there_is_named_with_those_that_are(root):
    with pytest.raises(InputError, match=r"no split 'test'.*holds train, val"):
        open_image_folder(root, "test")


def test_a_layout_is_told_by_folders_with_pictures(root, tmp_path):
    assert is_image_folder(root)
    assert not is_image_folder(root / "train")
    assert not is_image_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("home", ["", "images/"])
def test_pictures_without_labels_lie_below_their_split(tmp_path, home):
    write(tmp_path / f"{home}train/a/1.jpg")
    write(tmp_path / f"{home}train/2.png")
    write(tmp_path / f"{home}val/3.png")
    assert [p.name for p in open_pictures(tmp_path, "train").images] == ["2.png", "1.jpg"]
    assert [p.name for p in open_pictures(tmp_path, "val").images] == ["3.png"]
    with pytest.raises(InputError, match="no split 'test'"):
        open_pictures(tmp_path, "test")


def test_pictures_without_parts_are_parted(tmp_path):
    for index in range(12):
        write(tmp_path / f"{index:02}.png")
    train, val = (open_pictures(tmp_path, split).images for split in ("train", "val"))
    assert [path.stem for path in val] == ["09"]
    assert not set(train) & set(val)
    assert len(train) == 11


@pytest.mark.parametrize("samples", [2, 3, 9, 10, 11, 40])
def test_every_sample_is_in_one_part_and_no_part_is_empty(samples):
    train, val = (held_out(samples, split, "there") for split in ("train", "val"))
    assert sorted([*train, *val]) == list(range(samples))
    assert train
    assert val


def test_one_sample_cannot_be_parted():
    with pytest.raises(InputError, match="holds 1 sample"):
        held_out(1, "val", "there")


def test_another_picture_is_another_data_set(root):
    before = open_image_folder(root, "val").fingerprint()
    assert before == open_image_folder(root, "val").fingerprint()
    write(root / "val/ant/9.png")
    assert before != open_image_folder(root, "val").fingerprint()
