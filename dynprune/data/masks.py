"""Recognise masks of grey levels that were meant as classes: 0 and 255 where 0 and 1 are expected.

255 is void, so such a data set looks like one of a single class, on which every model scores well.
"""

from collections.abc import Iterator
from pathlib import Path

from dynprune.data.layouts import find_layout, splits_of
from dynprune.data.pictures import read_label
from dynprune.data.segmentation import SegmentationData
from dynprune.data.values import VOID
from dynprune.errors import InputError

__all__ = ["check_masks"]

_GREY = {0, VOID}


def check_masks(data: SegmentationData) -> None:
    """Refuse a data set of several classes whose label maps hold 0 and 255 alone.

    Label maps are read until one holds another value, which is the first in most data sets. All
    splits of a folder are looked at, since a class may be absent from one.

    Args:
        data: one split.

    Raises:
        InputError: if no label map of any split holds anything else, and nobody said that 255 is
            void (``data.label_map: {255: 255}``).
    """
    if data.layout != "folder" or len(data.classes) < 2 or VOID in data.values.mapping:
        return
    seen: set[int] = set()
    maps = void = 0
    for path in _label_maps(data):
        label = read_label(path)
        seen |= set(label.unique().tolist())
        if not seen <= _GREY:
            return
        maps += 1
        void += bool((label == VOID).any())
    if seen == _GREY:
        unseen = ", ".join(data.classes[1:4]) + (", ..." if len(data.classes) > 4 else "")
        raise InputError(
            f"the label maps of {data.root} hold the values 0 and 255 alone ({void} of {maps} hold "
            f"255), and 255 is void: no pixel would ever be {unseen}. If they are masks of 0 and "
            "255, say in a recipe which class 255 is: data.label_map: {255: 1}. If 255 really is "
            "void, say data.label_map: {255: 255}"
        )


def _label_maps(data: SegmentationData) -> Iterator[Path]:
    """Yield the label maps of this split, then those of the others."""
    own = set(data.labels)
    yield from data.labels
    for split in splits_of(data.root):
        try:
            pairs = find_layout(data.root, split).pairs
        except InputError:  # another split is broken: that is said when it is asked for
            continue
        yield from (label for _, label in pairs if label not in own)
