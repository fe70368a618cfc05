"""Masks of 0 and 255 are refused where two classes are expected; others are let through."""

import numpy as np
import pytest

from dynprune.data import LabelValues, check_masks, open_dataset
from dynprune.errors import InputError
from tests.data.scenes import folder, write_png


def masks(root, *levels, split="val", classes=("background", "crack")):
    """A data set whose label maps of one split hold some values alone."""
    folder(root, samples=3, classes=classes)
    for index in range(3):
        label = np.resize(np.array(levels), (12 + index, 16))
        write_png(root / f"annotations/{split}/{index}.png", label)
    return root


def both(root, *levels, **more):
    masks(root, *levels, split="train", **more)
    for index in range(3):
        label = np.resize(np.array(levels), (12 + index, 16))
        write_png(root / f"annotations/val/{index}.png", label)
    return root


@pytest.mark.parametrize("classes", [("background", "crack"), ("a", "b", "c")])
def test_masks_of_0_and_255_are_refused_with_what_to_do(tmp_path, classes):
    data = open_dataset(both(tmp_path, 0, 0, 255, classes=classes))
    with pytest.raises(InputError, match=r"0 and 255 alone .*data\.label_map: \{255: 1\}"):
        check_masks(data)


def test_masks_are_refused_where_nothing_names_the_classes(tmp_path):
    data = open_dataset(both(tmp_path, 0, 255, classes=()))
    check_masks(data)  # of a model of one class, 255 can only be void
    with pytest.raises(InputError, match="no pixel would ever be class 1"):
        check_masks(data.with_classes(("class 0", "class 1")))


@pytest.mark.parametrize("mapping", [{255: 1}, {255: 255}])
def test_who_says_what_255_is_is_believed(tmp_path, mapping):
    data = open_dataset(both(tmp_path, 0, 255), values=LabelValues(mapping=mapping))
    check_masks(data)
    label = data.load(0)[1]
    assert sorted(label.unique().tolist()) == [0, mapping[255]]


def test_another_split_may_hold_the_class_that_this_one_lacks(tmp_path):
    data = open_dataset(masks(tmp_path, 0, 255))  # the train split holds 0 and 1
    check_masks(data)


@pytest.mark.parametrize("levels", [(0,), (255,), (0, 1), (0, 1, 255), (1, 255)])
def test_other_values_are_no_such_masks(tmp_path, levels):
    check_masks(open_dataset(both(tmp_path, *levels)))


def test_the_first_label_map_of_a_usual_data_set_is_enough(tmp_path):
    folder(tmp_path, samples=3)
    data = open_dataset(tmp_path)
    for index in (1, 2):
        (tmp_path / f"annotations/val/{index}.png").unlink()
    check_masks(data)
