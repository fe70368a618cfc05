"""A segmentation data set: pictures with their label maps, checked as they are read."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dynprune.data.layouts import Layout, LayoutReader, find_layout
from dynprune.data.pictures import read_label, read_picture, read_upright
from dynprune.data.values import VOID, LabelValues, suggest_mapping
from dynprune.errors import InputError

__all__ = ["SegmentationData", "numbered_classes", "open_dataset"]

_LOG = logging.getLogger(__name__)
_CACHE_BYTES = 1 << 29
_SHOWN = 4  # values of a message
_LOOKED_AT = 200  # label maps from which a mapping is suggested
_TURNED = 5  # EXIF orientations from here on exchange height and width


def open_dataset(
    directory: Path | str,
    split: str = "val",
    *,
    classes: Sequence[str] = (),
    layout: LayoutReader = find_layout,
    values: LabelValues | None = None,
    cache_bytes: int = _CACHE_BYTES,
) -> "SegmentationData":
    """Open one split of the data set in ``directory``, whose layout is recognised.

    Files are paired here and decoded on :meth:`SegmentationData.load`.

    Args:
        directory: a folder, ADE20K or Cityscapes data set.
        split: the part to read.
        classes: names to use where the directory has none (no ``classes.txt``). Where neither
            tells, the label maps of the split are read once and classes are numbered.
        layout: finds the files; the layouts that dynprune knows are recognised by default.
        values: what the values in label maps mean; class indices with 255 for void by default.
        cache_bytes: decoded pictures that are kept in memory, in bytes.

    Raises:
        InputError: if there is no such data set or split, or a picture has no label map.
    """
    root = Path(directory)
    found = layout(root, split)
    if layout is not find_layout:
        _check_layout(found, root, split)
    if found.unpaired:
        _LOG.warning(
            "%d label maps have no picture and are left out; the first: %s",
            len(found.unpaired),
            found.unpaired[0],
        )
    values = values or LabelValues()
    names = found.classes or tuple(classes)
    data = SegmentationData(root, found, names, values=values, cache_bytes=cache_bytes)
    if names:
        return data
    table = values.table(found.indices)
    largest = max(_largest_class(path, table) for _, path in found.pairs)
    return data.with_classes(numbered_classes(largest + 1), numbered=True)


def _check_layout(found: Layout, root: Path, split: str) -> None:
    """Check what a layout of the user's own gave."""
    if not found.pairs:
        raise InputError(f"layout {found.name} found no picture in split {split!r} of {root}")
    for path in (path for pair in found.pairs for path in pair):
        if not path.is_relative_to(root):
            raise InputError(f"layout {found.name} gave {path}, which is not below {root}")
        if not path.is_file():
            raise InputError(f"layout {found.name} gave {path}, which is no file")


def numbered_classes(count: int) -> tuple[str, ...]:
    """Return the names of ``count`` classes that nobody has named."""
    return tuple(f"class {index}" for index in range(count))


def _largest_class(path: Path, table: Tensor) -> int:
    label = table[read_label(path).long()]
    real = label[label != VOID]
    return int(real.max()) if real.numel() else 0


class SegmentationData:
    """Pictures and label maps of one split, in a fixed order.

    Args:
        root: directory that the paths are reported relative to.
        layout: the files, and the table of a layout whose values are no class indices.
        classes: names in index order.
        values: what the values in label maps mean.
        numbered: whether ``classes`` are the numbers that occur, since nothing names them.
        cache_bytes: decoded pictures that are kept in memory, in bytes.

    Attributes:
        images: path of every picture.
        labels: path of every label map.
        layout: the layout's name, for reports.
    """

    def __init__(
        self,
        root: Path,
        layout: Layout,
        classes: Sequence[str],
        *,
        values: LabelValues,
        numbered: bool = False,
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        self.root = root
        self.images = tuple(image for image, _ in layout.pairs)
        self.labels = tuple(label for _, label in layout.pairs)
        self.classes = tuple(classes)
        self.numbered = numbered
        self.layout = layout.name
        self.values = values
        self._files = layout
        self._table = values.table(layout.indices)
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}
        self._room = self._cache_bytes = cache_bytes
        self._told_of_turning = False

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return (
            f"SegmentationData({self.root}, layout={self.layout}, samples={len(self)}, "
            f"classes={len(self.classes)})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the decoded pictures behind: a worker process keeps its own."""
        return {**self.__dict__, "_cache": {}, "_room": self._cache_bytes}

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Read one sample; do not change the tensors in place, they may be kept for next time.

        Returns:
            picture uint8 ``(3, H, W)`` and label uint8 ``(H, W)``; whatever counts for nothing
            is :data:`VOID`.

        Raises:
            InputError: if a file cannot be read, the sizes differ, or a value is no class.
        """
        if index in self._cache:
            return self._cache[index]
        image, orientation = read_upright(self.images[index])
        label = read_label(self.labels[index])
        self._check_size(index, image, label, orientation)
        classes = self._table[label.long()]
        self._check_classes(index, label, classes)
        sample = (image, classes)
        size = image.numel() + classes.numel()
        if size <= self._room:
            self._room -= size
            self._cache[index] = sample
        return sample

    def picture(self, index: int) -> Tensor:
        """Read one picture alone, uint8 ``(3, H, W)``; its label map is not looked at.

        Raises:
            InputError: if it cannot be read.
        """
        if index in self._cache:
            return self._cache[index][0]
        return read_picture(self.images[index])

    def with_classes(
        self, classes: Sequence[str], *, numbered: bool | None = None
    ) -> "SegmentationData":
        """Return the same samples under other class names.

        Args:
            classes: names in index order.
            numbered: whether they are numbers alone; as this data set's by default.
        """
        return self._like(self._files, classes, self.numbered if numbered is None else numbered)

    def subset(self, indices: Sequence[int]) -> "SegmentationData":
        """Make a data set of some samples of this one, in the given order."""
        pairs = tuple(self._files.pairs[index] for index in indices)
        return self._like(replace(self._files, pairs=pairs), self.classes, self.numbered)

    def fingerprint(self) -> str:
        """Hash the classes and every file's relative path and size: equal for equal copies."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        if self.values != LabelValues():
            digest.update(f"\n{self.values.describe()}".encode())
        for path in (*self.images, *self.labels):
            name = path.relative_to(self.root).as_posix()
            digest.update(f"\n{name} {path.stat().st_size}".encode())
        return digest.hexdigest()

    def _like(self, files: Layout, classes: Sequence[str], numbered: bool) -> "SegmentationData":
        return SegmentationData(
            self.root,
            files,
            classes,
            values=self.values,
            numbered=numbered,
            cache_bytes=self._cache_bytes,
        )

    def _check_size(self, index: int, image: Tensor, label: Tensor, orientation: int) -> None:
        """Refuse a label map of another size; say where only EXIF makes the two agree or differ."""
        if label.shape == image.shape[1:]:
            square = label.shape[0] == label.shape[1]
            if orientation > 1 and (square or orientation < _TURNED) and not self._told_of_turning:
                self._told_of_turning = True
                _LOG.warning(
                    "%s is turned upright by its EXIF orientation (%d); label maps are taken as "
                    "they are stored, so they must show the upright picture",
                    self.images[index],
                    orientation,
                )
            return
        found = (
            f"{self.labels[index]} is {_size(label)}, but its picture {self.images[index]} is "
            f"{_size(image)} (width x height)"
        )
        if orientation >= _TURNED and label.shape == image.shape[:0:-1]:
            raise InputError(
                f"{found} once its EXIF orientation ({orientation}) has turned it upright, and "
                f"{_size(label)} as it is stored. Pictures are turned and label maps are taken as "
                "they are stored: turn the label map, or save the picture without the orientation"
            )
        raise InputError(f"{found}; a label map has its picture's size")

    def _check_classes(self, index: int, label: Tensor, classes: Tensor) -> None:
        """Refuse values that are neither a class nor void, with the file, the values and counts."""
        wrong = (classes != VOID) & (classes >= len(self.classes))
        if not wrong.any():
            return
        values, counts = label[wrong].unique(return_counts=True)
        shown = [
            f"{value} ({count} pixel{'s' if count > 1 else ''})"
            for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        ][:_SHOWN]
        more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
        count = len(self.classes)
        raise InputError(
            f"{self.labels[index]} holds the value {', '.join(shown)}{more}, but there are "
            f"{count} classes (0 to {count - 1}: {_listed(self.classes)}; "
            f"{self.values.describe()}). {self._advice(label, values.tolist())}"
        )

    def _advice(self, label: Tensor, wrong: Sequence[int]) -> str:
        seen = set(label.unique().tolist())
        for path in self.labels[:_LOOKED_AT]:
            seen |= set(read_label(path).unique().tolist())
        mapping = suggest_mapping(sorted(seen), len(self.classes))
        if mapping is not None and not self.values.mapping:
            levels = ", ".join(map(str, sorted(seen)))
            return (
                f"The values {levels} look like grey levels of masks that are drawn to be looked "
                f"at; say in a recipe which class each is, such as data.label_map: {mapping}"
            )
        if list(wrong) == [len(self.classes)] and not self.values.reduce:
            return (
                "If values count from 1 and 0 is no class, say data.reduce_labels: true in a "
                "recipe; else correct the label map or the list of classes"
            )
        return (
            "Correct the label map or the list of classes, or say in a recipe what the value "
            f"means: data.label_map: {{{wrong[0]}: {VOID}}} ignores it"
        )


def _size(tensor: Tensor) -> str:
    return f"{tensor.shape[-1]}x{tensor.shape[-2]}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown
