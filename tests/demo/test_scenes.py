import sys

import numpy as np
import pytest
import torch

from dynprune.data import open_dataset
from dynprune.demo import scenes
from dynprune.demo.scenes import CLASSES, SIZE, make_dataset
from dynprune.errors import OutputError, UsageError


def content(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_a_seed_fixes_every_byte_and_another_seed_differs(tmp_path):
    made = [
        content(make_dataset(tmp_path / str(k), training=3, validation=2, seed=seed))
        for k, seed in enumerate((0, 0, 1))
    ]
    assert made[0] == made[1]
    assert made[0]["images/train/0000.png"] != made[2]["images/train/0000.png"]
    assert made[0]["images/train/0000.png"] != made[0]["images/val/0000.png"]


def test_it_is_a_data_set_of_the_folder_layout(tmp_path):
    root = make_dataset(tmp_path / "data", training=30, validation=4)
    training, validation = open_dataset(root, "train"), open_dataset(root, "val")
    assert (len(training), len(validation)) == (30, 4)
    assert training.classes == CLASSES
    seen = torch.zeros(len(CLASSES), dtype=torch.long)
    for index in range(30):
        image, label = training.load(index)
        assert image.shape == (3, *SIZE)
        seen += label.flatten().bincount(minlength=len(CLASSES))
    assert (seen > 0).all()


def test_validation_scenes_show_digits_that_no_training_scene_shows(monkeypatch):
    shown = {}

    class Recording(np.random.Generator):
        def choice(self, options, *args):
            chosen = super().choice(options, *args)
            shown.setdefault(self.split, set()).add(int(chosen))
            return chosen

    for split in (False, True):
        random = Recording(np.random.PCG64(0))
        random.split = split
        for _ in range(40):
            scenes._draw_scene(random, held_out=split)
    assert len(shown[True]) > 50
    assert not shown[True] & shown[False]


def test_plates_never_overlap():
    random = np.random.default_rng(0)
    for _ in range(50):
        taken, owner = [], np.zeros(SIZE, int)
        for _ in range(5):
            place = scenes._find_room(taken, random)
            if place is not None:
                top, left, side = place
                owner[top : top + side, left : left + side] += 1
                taken.append(place)
        assert owner.max() == 1
        assert owner.sum() == sum(side**2 for _, _, side in taken)


def test_a_directory_that_is_not_empty_is_refused_and_replaced_when_asked(tmp_path):
    (tmp_path / "keep").touch()
    with pytest.raises(OutputError, match="not empty"):
        make_dataset(tmp_path, training=1, validation=1)
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]
    make_dataset(tmp_path, training=1, validation=1, overwrite=True)
    assert not (tmp_path / "keep").exists()


def test_without_scikit_learn_the_message_says_what_to_install(tmp_path, monkeypatch):
    scenes._digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'dynprune\[demo\]'"):
        make_dataset(tmp_path / "data")
    assert not (tmp_path / "data").exists()
