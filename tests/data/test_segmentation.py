import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynprune.data import VOID, LabelValues, Layout, find_layout, open_dataset
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


def turned(path, size, orientation):
    """Write a picture that is stored as ``size`` and turned by its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(0, size).astype(np.uint8)).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_label_map_of_the_stored_size_of_a_turned_picture_is_refused_with_why(
    tmp_path, orientation
):
    folder(tmp_path, samples=1)
    turned(tmp_path / "images/val/0.png", (12, 16), orientation)
    with pytest.raises(
        InputError,
        match=rf"0\.png is 16x12, but its picture .* is 12x16 .* EXIF orientation "
        rf"\({orientation}\) has turned it upright.*turn the label map",
    ):
        open_dataset(tmp_path).load(0)
    write_png(tmp_path / "annotations/val/0.png", labels(0, size=(16, 12)))
    image, label = open_dataset(tmp_path).load(0)
    assert image.shape[1:] == label.shape == (16, 12)


@pytest.mark.parametrize(("size", "orientation"), [((12, 16), 3), ((12, 16), 2), ((16, 16), 6)])
def test_where_a_turn_keeps_the_size_it_is_told_once(tmp_path, caplog, size, orientation):
    folder(tmp_path, samples=2)
    for index in range(2):
        turned(tmp_path / f"images/val/{index}.png", size, orientation)
        write_png(tmp_path / f"annotations/val/{index}.png", labels(0, size=size))
    data = open_dataset(tmp_path)
    data.load(0)
    data.load(1)
    (record,) = caplog.records
    assert f"EXIF orientation ({orientation})" in record.getMessage()
    assert "taken as they are stored" in record.getMessage()


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_an_upright_picture_is_not_spoken_of(tmp_path, caplog, orientation):
    folder(tmp_path, samples=1)
    turned(tmp_path / "images/val/0.png", (12, 16), orientation)
    open_dataset(tmp_path).load(0)
    assert not caplog.records


def test_a_value_that_is_no_class_is_refused_with_its_count_and_void_is_not(tmp_path):
    folder(tmp_path)
    label = labels(0)
    label[0, 0] = VOID
    write_png(tmp_path / "annotations/val/0.png", label)
    open_dataset(tmp_path).load(0)
    label[0, :2] = 3
    label[1, 0] = 9
    write_png(tmp_path / "annotations/val/0.png", label)
    with pytest.raises(
        InputError,
        match=r"0\.png holds the value 3 \(2 pixels\), 9 \(1 pixel\), but there are 3 classes "
        r"\(0 to 2: sky, road, tree; value 255 is ignored\).*data\.label_map: \{3: 255\}",
    ):
        open_dataset(tmp_path).load(0)
    values = LabelValues(ignore=(9,), mapping={3: 1})
    read = open_dataset(tmp_path, values=values).load(0)[1]
    assert read[0, :2].tolist() == [1, 1]
    assert read[1, 0] == VOID


def test_values_that_count_from_one_are_told_of_the_reduction(tmp_path):
    folder(tmp_path, samples=1)
    write_png(tmp_path / "annotations/val/0.png", labels(0) + 1)
    with pytest.raises(InputError, match=r"the value 3 .*data\.reduce_labels: true"):
        open_dataset(tmp_path).load(0)
    read = open_dataset(tmp_path, values=LabelValues(reduce=True)).load(0)[1]
    assert torch.equal(read.long(), torch.from_numpy(labels(0)))


@pytest.mark.parametrize("levels", [(0, 128, 255), (0, 127, 254), (0, 100, 200)])
def test_grey_levels_are_told_with_a_mapping_that_reads_them(tmp_path, levels):
    folder(tmp_path, samples=2)
    for index in range(2):
        label = np.take(levels, labels(index, size=(12 + index, 16)))
        write_png(tmp_path / f"annotations/val/{index}.png", label)
    mapping = {value: index for index, value in enumerate(levels)}
    with pytest.raises(InputError, match=rf"grey levels .*label_map: {re.escape(str(mapping))}"):
        open_dataset(tmp_path).load(0)
    read = open_dataset(tmp_path, values=LabelValues(mapping=mapping)).load(1)[1]
    assert torch.equal(read.long(), torch.from_numpy(labels(1, size=(13, 16))))


@pytest.mark.parametrize("ignore", [(0,), (1, 2), (255,)])
def test_whatever_is_ignored_is_void_once_it_is_read(tmp_path, ignore):
    data = open_dataset(folder(tmp_path), values=LabelValues(ignore=ignore))
    raw = torch.from_numpy(labels(0))
    expected = torch.where(torch.isin(raw, torch.tensor(ignore)), VOID, raw)
    assert torch.equal(data.load(0)[1].long(), expected)
    assert torch.equal(data.subset([1, 0]).load(1)[1].long(), expected)
    assert torch.equal(data.with_classes(("a", "b", "c")).load(0)[1].long(), expected)


def test_a_reduction_leaves_a_shifted_layout_alone(tmp_path):
    plain = open_dataset(ade20k(tmp_path))
    reduced = open_dataset(tmp_path, values=LabelValues(reduce=True))
    assert torch.equal(plain.load(0)[1], reduced.load(0)[1])


def test_label_maps_without_a_picture_are_told(tmp_path, caplog):
    folder(tmp_path)
    write_png(tmp_path / "annotations/val/more.png", labels(0))
    assert len(open_dataset(tmp_path)) == 4
    (record,) = caplog.records
    assert "1 label maps have no picture" in record.getMessage()
    assert "more.png" in record.getMessage()


def test_what_labels_mean_is_part_of_the_fingerprint(tmp_path):
    folder(tmp_path)
    prints = {
        open_dataset(tmp_path, values=values).fingerprint()
        for values in (None, LabelValues(ignore=(0,)), LabelValues(reduce=True))
    }
    assert len(prints) == 3


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


def test_a_layout_of_ones_own_finds_the_files(tmp_path):
    root = folder(tmp_path, samples=3)
    known = open_dataset(root, "val")

    def reversed_layout(directory, split):
        found = find_layout(directory, split)
        return Layout("reversed", found.pairs[::-1], ("a", "b", "c"), None)

    data = open_dataset(root, "val", layout=reversed_layout)
    assert data.images == known.images[::-1]
    assert (data.layout, data.classes) == ("reversed", ("a", "b", "c"))


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ((), "layout mine found no picture in split 'val'"),
        (((Path("/elsewhere.png"), Path("/elsewhere.png")),), "which is not below"),
    ],
)
def test_a_layout_that_finds_nothing_or_elsewhere_is_refused(tmp_path, pairs, text):
    with pytest.raises(InputError, match=text):
        open_dataset(tmp_path, layout=lambda *_: Layout("mine", pairs, ("a",), None))
