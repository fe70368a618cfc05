import pytest

from dynprune.data.layouts import VOID, find_layout
from dynprune.errors import InputError
from tests.data.scenes import ade20k, cityscapes, folder, picture, write_png


def test_a_folder_is_paired_by_stem_in_sorted_order(tmp_path):
    layout = find_layout(folder(tmp_path, samples=3), "val")
    assert layout.name == "folder"
    assert layout.classes == ("sky", "road", "tree")
    assert layout.indices is None
    assert [image.name for image, _ in layout.pairs] == ["0.png", "1.png", "2.png"]
    assert all(image.stem == label.stem for image, label in layout.pairs)


@pytest.mark.parametrize("inner", ["", "ADEChallengeData2016"])
def test_ade20k_is_recognised_and_its_labels_are_shifted_by_one(tmp_path, inner):
    ade20k(tmp_path / inner)
    layout = find_layout(tmp_path, "val")
    assert layout.name == "ade20k"
    assert len(layout.pairs) == 2
    assert len(layout.classes) == 150
    assert layout.indices[0] == VOID
    assert layout.indices[1:151] == tuple(range(150))


def test_ade20k_takes_its_names_from_the_table_that_comes_with_it(tmp_path):
    ade20k(tmp_path)
    rows = [f"{index}\t0.1\t1\t1\tname {index}, other" for index in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    assert find_layout(tmp_path, "val").classes[:2] == ("name 1", "name 2")


def test_cityscapes_is_recognised_over_all_cities(tmp_path):
    layout = find_layout(cityscapes(tmp_path), "train")
    assert layout.name == "cityscapes"
    assert [label.parent.name for _, label in layout.pairs] == ["aachen", "bonn"]
    assert len(layout.classes) == 19
    assert layout.indices is None


def test_cityscapes_train_ids_are_made_from_full_ids_where_they_are_missing(tmp_path):
    layout = find_layout(cityscapes(tmp_path, kind="labelIds", classes=34), "val")
    mapped = [value for value in layout.indices if value != VOID]
    assert mapped == list(range(19))  # ids are listed in the order of the train ids
    assert layout.indices[7] == 0  # road
    assert layout.indices[33] == 18  # bicycle
    assert layout.indices[0] == layout.indices[9] == layout.indices[255] == VOID


def test_a_directory_without_a_layout_is_refused_with_what_was_expected(tmp_path):
    with pytest.raises(InputError, match=r"follows no layout.*images/val.*annotations/val"):
        find_layout(tmp_path, "val")
    with pytest.raises(InputError, match="does not exist"):
        find_layout(tmp_path / "absent", "val")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="it is a file"):
        find_layout(file, "val")


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(InputError, match=r"no split 'test'.*holds train, val"):
        find_layout(folder(tmp_path), "test")


def test_an_empty_split_is_refused(tmp_path):
    (tmp_path / "images/val").mkdir(parents=True)
    (tmp_path / "images/val/notes.txt").touch()
    with pytest.raises(InputError, match="split 'val' is empty"):
        find_layout(tmp_path, "val")


def test_missing_label_maps_are_counted_and_the_first_is_named(tmp_path):
    folder(tmp_path, samples=4)
    for name in ("1", "2"):
        (tmp_path / f"annotations/val/{name}.png").unlink()
    with pytest.raises(InputError, match=r"2 of 4 pictures have no label map.*val/1\.png"):
        find_layout(tmp_path, "val")


def test_two_pictures_of_one_label_map_are_refused(tmp_path):
    folder(tmp_path)
    write_png(tmp_path / "images/val/0.jpg", picture(0))
    with pytest.raises(InputError, match=r"0\.jpg.*0\.png share the label map"):
        find_layout(tmp_path, "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [("sky\nroad\nsky\n", "repeats sky"), ("\n", "holds 0 names"), ("\xff", "not UTF-8")],
)
def test_a_list_of_classes_that_cannot_be_meant_is_refused(tmp_path, text, message):
    folder(tmp_path)
    (tmp_path / "classes.txt").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        find_layout(tmp_path, "val")
