"""A segmentation data set: pictures with their label maps, checked as they are read."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynprune.data.layouts import VOID, Layout, LayoutReader, find_layout
from dynprune.data.pictures import read_label, read_picture
from dynprune.errors import InputError

__all__ = ["SegmentationData", "open_dataset"]

_CACHE_BYTES = 1 << 29


def open_dataset(
    directory: Path | str,
    split: str = "val",
    *,
    classes: Sequence[str] = (),
    layout: LayoutReader = find_layout,
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
        cache_bytes: decoded pictures that are kept in memory, in bytes.

    Raises:
        InputError: if there is no such data set or split, or a picture has no label map.
    """
    root = Path(directory)
    found = layout(root, split)
    if layout is not find_layout:
        _check_layout(found, root, split)
    indices = None
    if found.indices is not None:
        indices = torch.tensor(found.indices, dtype=torch.uint8)
    names = found.classes or tuple(classes) or _number_classes(found.pairs)
    return SegmentationData(
        root, found.pairs, names, layout=found.name, indices=indices, cache_bytes=cache_bytes
    )


def _check_layout(found: Layout, root: Path, split: str) -> None:
    """Check what a layout of the user's own gave."""
    if not found.pairs:
        raise InputError(f"layout {found.name} found no picture in split {split!r} of {root}")
    for path in (path for pair in found.pairs for path in pair):
        if not path.is_relative_to(root):
            raise InputError(f"layout {found.name} gave {path}, which is not below {root}")
        if not path.is_file():
            raise InputError(f"layout {found.name} gave {path}, which is no file")


def _number_classes(pairs: Sequence[tuple[Path, Path]]) -> tuple[str, ...]:
    largest = 0
    for _, path in pairs:
        label = read_label(path)
        real = label[label != VOID]
        largest = max(largest, int(real.max()) if real.numel() else 0)
    return tuple(f"class {index}" for index in range(largest + 1))


class SegmentationData:
    """Pictures and label maps of one split, in a fixed order.

    Args:
        root: directory that the paths are reported relative to.
        pairs: picture and label map of every sample.
        classes: names in index order.
        layout: the layout's name, for reports.
        indices: uint8 ``(256,)`` table from a label map's values to class indices; ``None``
            where they are class indices already.
        cache_bytes: decoded pictures that are kept in memory, in bytes.

    Attributes:
        images: path of every picture.
        labels: path of every label map.
    """

    def __init__(
        self,
        root: Path,
        pairs: Sequence[tuple[Path, Path]],
        classes: Sequence[str],
        *,
        layout: str = "folder",
        indices: Tensor | None = None,
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        self.root = root
        self.images = tuple(image for image, _ in pairs)
        self.labels = tuple(label for _, label in pairs)
        self.classes = tuple(classes)
        self.layout = layout
        self._indices = indices
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}
        self._room = self._cache_bytes = cache_bytes

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
            picture uint8 ``(3, H, W)`` and label uint8 ``(H, W)``, void 255.

        Raises:
            InputError: if a file cannot be read, the sizes differ, or a label is out of range.
        """
        if index in self._cache:
            return self._cache[index]
        image = read_picture(self.images[index])
        sample = (image, self._load_label(index, image))
        size = image.numel() + sample[1].numel()
        if size <= self._room:
            self._room -= size
            self._cache[index] = sample
        return sample

    def _load_label(self, index: int, image: Tensor) -> Tensor:
        path = self.labels[index]
        label = read_label(path)
        if self._indices is not None:
            label = self._indices[label.long()]
        if label.shape != image.shape[1:]:
            raise InputError(
                f"{path} is {_size(label)}, but its picture {self.images[index]} is "
                f"{_size(image)} (width x height); a label map has its picture's size"
            )
        largest = int(torch.where(label == VOID, 0, label).max())
        if largest >= len(self.classes):
            raise InputError(
                f"{path} holds the class index {largest}, but there are {len(self.classes)} "
                f"classes (0 to {len(self.classes) - 1}, void {VOID}); correct the label map or "
                "the list of classes"
            )
        return label

    def subset(self, indices: Sequence[int]) -> "SegmentationData":
        """Make a data set of some samples of this one, in the given order."""
        pairs = [(self.images[index], self.labels[index]) for index in indices]
        return SegmentationData(
            self.root,
            pairs,
            self.classes,
            layout=self.layout,
            indices=self._indices,
            cache_bytes=self._cache_bytes,
        )

    def fingerprint(self) -> str:
        """Hash the classes and every file's relative path and size: equal for equal copies."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for path in (*self.images, *self.labels):
            name = path.relative_to(self.root).as_posix()
            digest.update(f"\n{name} {path.stat().st_size}".encode())
        return digest.hexdigest()


def _size(tensor: Tensor) -> str:
    return f"{tensor.shape[-1]}x{tensor.shape[-2]}"
