import pytest
import torch

from dynprune.data.values import VOID, LabelValues, suggest_mapping


def test_values_are_class_indices_and_255_is_void_by_default():
    assert torch.equal(LabelValues().table(), torch.arange(256, dtype=torch.uint8))


def test_reduced_labels_are_those_of_the_transformers_library():
    """Its rule: 0 becomes 255, all lose one, and what was 255 becomes 255 again."""
    expected = torch.arange(256)
    expected[expected == 0] = 255
    expected = expected - 1
    expected[expected == 254] = 255
    assert torch.equal(LabelValues(reduce=True).table().long(), expected)


@pytest.mark.parametrize("ignore", [(0,), (7,), (254,), (0, 3, 200)])
def test_what_is_ignored_is_void_and_so_is_255_and_nothing_else(ignore):
    table = LabelValues(ignore=ignore).table().long()
    for value in range(256):
        assert table[value] == (VOID if value in (*ignore, 255) else value)


def test_what_is_ignored_is_a_class_after_the_reduction():
    table = LabelValues(ignore=(0,), reduce=True).table()
    assert table[:4].tolist() == [VOID, VOID, 1, 2]


def test_a_mapping_says_what_a_value_is_and_others_stay():
    table = LabelValues(mapping={255: 1, 7: VOID}).table()
    assert table[[0, 1, 7, 8, 255]].tolist() == [0, 1, VOID, 8, 1]


def test_a_layouts_own_table_takes_the_place_of_the_reduction():
    layout = [VOID, *range(255)]
    once = LabelValues(reduce=True).table(layout)
    assert torch.equal(once, LabelValues().table(layout))
    assert LabelValues(ignore=(0,)).table(layout)[:3].tolist() == [VOID, VOID, 1]


def test_it_is_told_in_words():
    assert LabelValues().describe() == "value 255 is ignored"
    assert LabelValues(ignore=(0,)).describe() == "values 0 and 255 are ignored"
    assert LabelValues(reduce=True).describe().startswith("0 is ignored and 1 is the first class")
    assert "255 is class 1; nothing is ignored" in LabelValues(mapping={255: 1}).describe()


@pytest.mark.parametrize(
    ("values", "classes", "mapping"),
    [
        ([0, 255], 2, "{0: 0, 255: 1}"),
        ([0, 128, 255], 3, "{0: 0, 128: 1, 255: 2}"),
        ([0, 128, 255], 2, "{0: 0, 128: 1}"),
        ([0, 85, 170, 255], 4, "{0: 0, 85: 1, 170: 2, 255: 3}"),
        ([0, 1, 2], 3, None),
        ([0, 1, 2, 3], 3, None),
        ([1, 2, 3], 3, None),
        ([0, 60, 120, 180, 240], 3, None),
    ],
)
def test_a_mapping_is_suggested_for_grey_levels_alone(values, classes, mapping):
    assert suggest_mapping(values, classes) == mapping
