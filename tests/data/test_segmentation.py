import copy

import pytest
import torch

from dynprune.data import VOID, open_dataset
from dynprune.errors import InputError
from tests.data.scenes import ade20k, cityscapes, folder, labels, picture, write_png


def test_a_sample_is_a_picture_and_its_labels_at_its_own_size(tmp_path):
    data = open_dataset(folder(tmp_path))
    assert len(data) == 4
    for index in range(4):
        image, label = data.load(index)
        assert image.shape == (3, 12 + index, 16)
        assert label.shape == (12 + index, 16)
        assert image.dtype == label.dtype == torch.uint8
        assert torch.equal(
            image.permute(1, 2, 0).long(), torch.from_numpy(picture(index, label.shape))
        )


def test_ade20k_labels_lose_one_and_zero_becomes_void(tmp_path):
    data = open_dataset(ade20k(tmp_path))
    _, label = data.load(0)
    raw = torch.from_numpy(labels(0, 151))
    assert torch.equal(label.long(), torch.where(raw == 0, VOID, raw - 1))


def test_cityscapes_full_ids_are_turned_into_train_ids(tmp_path):
    data = open_dataset(cityscapes(tmp_path, kind="labelIds", classes=34))
    _, label = data.load(0)
    raw = torch.from_numpy(labels(0, 34))
    assert (label[raw == 7] == 0).all()
    assert (label[raw == 26] == 13).all()
    assert (label[raw < 7] == VOID).all()


def test_classes_are_numbered_from_the_labels_where_nothing_names_them(tmp_path):
    folder(tmp_path, classes=())
    for index in range(4):
        label = torch.full((12 + index, 16), VOID)
        label[0, 0] = index
        write_png(tmp_path / f"annotations/val/{index}.png", label.numpy())
    assert open_dataset(tmp_path).classes == ("class 0", "class 1", "class 2", "class 3")
    assert open_dataset(tmp_path, classes=["a", "b"]).classes == ("a", "b")


def test_labels_of_another_size_than_the_picture_are_refused(tmp_path):
    folder(tmp_path)
    write_png(tmp_path / "annotations/val/0.png", labels(0, size=(5, 7)))
    with pytest.raises(InputError, match=r"0\.png is 7x5, but its picture .* is 16x12"):
        open_dataset(tmp_path).load(0)


def test_a_label_out_of_range_is_refused_and_void_is_not(tmp_path):
    folder(tmp_path)
    label = labels(0)
    label[0, 0] = VOID
    write_png(tmp_path / "annotations/val/0.png", label)
    open_dataset(tmp_path).load(0)
    label[0, 0] = 3
    write_png(tmp_path / "annotations/val/0.png", label)
    with pytest.raises(
        InputError, match=r"0\.png holds the class index 3, but there are 3 classes"
    ):
        open_dataset(tmp_path).load(0)


def test_pictures_are_kept_in_memory_up_to_the_budget(tmp_path):
    data = open_dataset(folder(tmp_path), cache_bytes=4 * 12 * 16)
    first, second = data.load(0), data.load(1)
    assert data.load(0)[0] is first[0]
    assert data.load(1)[0] is not second[0]


def test_a_copy_takes_the_files_along_and_not_the_decoded_pictures(tmp_path):
    data = open_dataset(folder(tmp_path))
    image, _ = data.load(0)
    copied = copy.copy(data)  # through __getstate__, as on the way to a worker process
    assert copied.load(0)[0] is not image
    assert torch.equal(copied.load(0)[0], image)


def test_a_subset_holds_the_chosen_samples_in_the_given_order(tmp_path):
    data = open_dataset(folder(tmp_path))
    part = data.subset([2, 0])
    assert [path.stem for path in part.images] == ["2", "0"]
    assert torch.equal(part.load(0)[1], data.load(2)[1])


def test_equal_copies_have_equal_fingerprints_and_others_do_not(tmp_path):
    first, second = (open_dataset(folder(tmp_path / name)) for name in "ab")
    assert first.fingerprint() == second.fingerprint()
    assert first.fingerprint() != first.subset([0, 1]).fingerprint()
