"""Recognise how a directory lays out a segmentation data set, and pair pictures with label maps.

Three layouts are known: a plain folder (``images/SPLIT`` with ``annotations/SPLIT``), ADE20K as
``ADEChallengeData2016`` (labels shifted by one, 0 is void), and Cityscapes (``leftImg8bit`` with
``gtFine``; train ids, made from the full ids where only those are there).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dynprune.data.values import VOID
from dynprune.errors import InputError

__all__ = ["Layout", "LayoutReader", "find_layout", "splits_of"]

PICTURES = (".jpg", ".jpeg", ".png")

_CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)  # fmt: skip
_CITYSCAPES_TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip
_ADE20K_CLASSES = 150


@dataclass(frozen=True)
class Layout:
    """The files of one split, and what their labels mean.

    Attributes:
        name: ``folder``, ``ade20k`` or ``cityscapes``.
        pairs: picture and label map, sorted by path.
        classes: names in index order; empty where the directory does not tell.
        indices: class index (or :data:`VOID`) for each of the 256 values that a label map can
            hold; ``None`` where the values are class indices already.
        unpaired: label maps that no picture goes with.
    """

    name: str
    pairs: tuple[tuple[Path, Path], ...]
    classes: tuple[str, ...]
    indices: tuple[int, ...] | None
    unpaired: tuple[Path, ...] = ()


class LayoutReader(Protocol):
    """Finds the files of one split of a data set; `find_layout` is one."""

    def __call__(self, directory: Path, split: str, /) -> Layout:
        """Pair the pictures of a split with their label maps, all of them below ``directory``.

        Raises:
            InputError: where the split is not there, or is not complete.
        """


def find_layout(directory: Path, split: str) -> Layout:
    """Recognise the layout of ``directory`` and pair the files of ``split``.

    Args:
        directory: the data set.
        split: ``train``, ``val``, or any other part that the data set has.

    Raises:
        InputError: if the directory is missing or follows no known layout, if the split is not
            there or empty, or if a picture has no label map.
    """
    try:
        return _recognise(directory, split)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"the data set at {directory} cannot be read: {error}") from error


def splits_of(directory: Path) -> tuple[str, ...]:
    """Name the splits of a folder data set, sorted; none where it has another layout."""
    images = directory / "images"
    if not images.is_dir():
        return ()
    return tuple(sorted(path.name for path in images.iterdir() if path.is_dir()))


def _recognise(directory: Path, split: str) -> Layout:
    if not directory.is_dir():
        found = "it is a file" if directory.exists() else "it does not exist"
        raise InputError(f"no data set at {directory}: {found}; give the directory of a data set")
    if (directory / "ADEChallengeData2016").is_dir():
        return _ade20k(directory / "ADEChallengeData2016", split)
    if (directory / "images" / "training").is_dir():
        return _ade20k(directory, split)
    if (directory / "leftImg8bit").is_dir():
        return _cityscapes(directory, split)
    if (directory / "images").is_dir():
        return _folder(directory, split)
    raise InputError(
        f"{directory} follows no layout that is known; expected images/{split} with "
        f"annotations/{split}, ADEChallengeData2016/images/training, or leftImg8bit/{split} with "
        "gtFine"
    )


def _folder(root: Path, split: str) -> Layout:
    annotations = root / "annotations" / split

    def label_of(image: Path) -> Path:
        return annotations / f"{image.stem}.png"

    images = _list_pictures(root / "images", split, root / "images" / split)
    pairs = _pair(images, label_of)
    names = _read_names(root / "classes.txt")
    return Layout("folder", pairs, names, None, _unpaired(annotations, pairs))


def _ade20k(root: Path, split: str) -> Layout:
    part = {"train": "training", "val": "validation"}.get(split, split)
    annotations = root / "annotations" / part

    def label_of(image: Path) -> Path:
        return annotations / f"{image.stem}.png"

    images = _list_pictures(root / "images", split, root / "images" / part)
    names = _read_ade20k_names(root / "objectInfo150.txt")
    shifted = (VOID, *range(255))
    pairs = _pair(images, label_of)
    return Layout("ade20k", pairs, names, shifted, _unpaired(annotations, pairs))


def _cityscapes(root: Path, split: str) -> Layout:
    pictures, truth = root / "leftImg8bit", root / "gtFine"
    images = _list_pictures(pictures, split, pictures / split, pattern="*/*_leftImg8bit.png")

    def stem(image: Path) -> str:
        return image.name.removesuffix("_leftImg8bit.png")

    first = images[0]
    folder = truth / split / first.parent.name
    full_ids = (
        not (folder / f"{stem(first)}_gtFine_labelTrainIds.png").exists()
        and (folder / f"{stem(first)}_gtFine_labelIds.png").exists()
    )
    kind = "labelIds" if full_ids else "labelTrainIds"

    def label_of(image: Path) -> Path:
        return truth / split / image.parent.name / f"{stem(image)}_gtFine_{kind}.png"

    indices = tuple(_CITYSCAPES_TRAIN_IDS.get(value, VOID) for value in range(256))
    pairs = _pair(images, label_of)
    return Layout("cityscapes", pairs, _CITYSCAPES_CLASSES, indices if full_ids else None)


def _list_pictures(parent: Path, split: str, folder: Path, pattern: str = "*") -> list[Path]:
    """List the pictures of a split in sorted order; a split that is not there is an error."""
    if not folder.is_dir():
        present = sorted(path.name for path in parent.iterdir() if path.is_dir())
        raise InputError(
            f"no split {split!r}: {folder} does not exist; {parent} holds "
            f"{', '.join(present) or 'no split at all'}"
        )
    images = sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in PICTURES and not path.name.startswith(".")
    )
    if not images:
        raise InputError(f"split {split!r} is empty: {folder} holds no {'/'.join(PICTURES)} file")
    return images


def _pair(
    images: Iterable[Path], label_of: Callable[[Path], Path]
) -> tuple[tuple[Path, Path], ...]:
    """Return every picture its label map; all pictures without one are named at once."""
    pairs: list[tuple[Path, Path]] = []
    missing: list[Path] = []
    taken: dict[Path, Path] = {}
    for image in images:
        label = label_of(image)
        if label in taken:
            raise InputError(
                f"{taken[label]} and {image} share the label map {label}; rename one of them"
            )
        taken[label] = image
        if label.is_file():
            pairs.append((image, label))
        else:
            missing.append(label)
    if missing:
        raise InputError(
            f"{len(missing)} of {len(missing) + len(pairs)} pictures have no label map; "
            f"the first that is missing: {missing[0]}"
        )
    return tuple(pairs)


def _unpaired(annotations: Path, pairs: Iterable[tuple[Path, Path]]) -> tuple[Path, ...]:
    """List the label maps of a directory that no picture goes with."""
    return tuple(sorted(set(annotations.glob("*.png")) - {label for _, label in pairs}))


def _read_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; write one class name a line") from error
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not 0 < len(names) <= VOID:
        found = f"it repeats {', '.join(repeated)}" if repeated else f"it holds {len(names)} names"
        raise InputError(f"{path}: {found}; write 1 to {VOID} different names, one a line")
    return names


def _read_ade20k_names(path: Path) -> tuple[str, ...]:
    """Read the last column of ``objectInfo150.txt``; numbered names where it is not there."""
    numbered = tuple(f"class {index}" for index in range(_ADE20K_CLASSES))
    if not path.is_file():
        return numbered
    rows = path.read_text("utf-8", errors="replace").splitlines()[1:]
    names = tuple(row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip())
    distinct = len(set(names)) == _ADE20K_CLASSES == len(names)
    return names if distinct else numbered
