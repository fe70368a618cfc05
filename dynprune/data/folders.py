"""Pictures in folders: one folder a class (ImageFolder), or pictures alone.

``DIR/SPLIT/CLASS/*.jpg`` is the layout of classification. Pictures alone lie below ``DIR/SPLIT``,
``DIR/images/SPLIT``, or ``DIR``, of which every tenth is then held out.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dynprune.data.layouts import PICTURES
from dynprune.data.pictures import read_picture
from dynprune.errors import InputError

__all__ = ["FolderData", "held_out", "is_image_folder", "open_image_folder", "open_pictures"]

HELD_OUT = 10  # of so many samples one is kept for validation, where data has no parts


@dataclass(frozen=True)
class FolderData:
    """Pictures, and the class of each where folders tell it.

    Attributes:
        root: that paths are reported relative to.
        images: path of every picture, sorted by class and name.
        labels: index into ``classes`` of every picture; empty where there are no classes.
        classes: names of the folders, sorted.
    """

    root: Path
    images: tuple[Path, ...]
    labels: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def picture(self, index: int) -> Tensor:
        """Read one picture: uint8 ``(3, H, W)``, upright.

        Raises:
            InputError: if it cannot be read.
        """
        return read_picture(self.images[index])

    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that tell this data from other data: names, sizes and classes."""
        listed = [
            (str(path.relative_to(self.root)), path.stat().st_size, *self.labels[i : i + 1])
            for i, path in enumerate(self.images)
        ]
        files = hashlib.sha256(repr(listed).encode("utf-8", "replace")).hexdigest()
        return {"images": len(self), "classes": list(self.classes), "files": files}


def is_image_folder(directory: Path) -> bool:
    """Whether a directory has a split that holds folders with pictures in them."""
    return any(
        next(_pictures_below(folder), None) is not None
        for split in ("train", "val")
        for folder in _folders(directory / split)
    )


def open_image_folder(directory: Path, split: str) -> FolderData:
    """List the pictures of ``DIR/SPLIT/CLASS``.

    The classes are the folders of every split that the directory has (train and val), sorted, so
    that a class has one index, whether or not a split shows it.

    Raises:
        InputError: if there is no such split, a class's folder holds no picture, or a picture lies
            beside the folders.
    """
    root = _split_of(directory, split)
    folders = _folders(root)
    if not folders:
        raise InputError(
            f"{root} holds no folder; classification reads a folder a class, "
            f"{directory}/{split}/CLASS/*.jpg"
        )
    stray = [path for path in sorted(root.iterdir()) if _is_picture(path)]
    if stray:
        raise InputError(
            f"{len(stray)} pictures in {root} lie in no class's folder; the first: {stray[0]}; "
            "move them into one, or out of the data set"
        )
    others = [directory / other for other in {"train", "val"} - {split}]
    named = {path.name for place in (root, *others) for path in _folders(place)}
    classes = tuple(sorted(named))
    index = {name: number for number, name in enumerate(classes)}
    images: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        found = sorted(_pictures_below(folder))
        if not found:
            raise InputError(
                f"class {folder.name} is empty: {folder} holds no {'/'.join(PICTURES)} file; put "
                "pictures there, or remove the folder"
            )
        images += found
        labels += [index[folder.name]] * len(found)
    return FolderData(directory, tuple(images), tuple(labels), classes)


def open_pictures(directory: Path, split: str) -> FolderData:
    """List pictures without labels, whatever folders they lie in.

    Raises:
        InputError: if there are none.
    """
    _require_directory(directory)
    homes = [directory / split, directory / "images" / split]
    home = next((place for place in homes if place.is_dir()), None)
    parts = [place for place in ("train", "val") if (directory / place).is_dir()]
    parts += [f"images/{p}" for p in ("train", "val") if (directory / "images" / p).is_dir()]
    if home is None and parts:
        raise InputError(f"no split {split!r} in {directory}: it holds {', '.join(parts)}")
    found = sorted(_pictures_below(home or directory))
    if not found:
        raise InputError(f"{home or directory} holds no {'/'.join(PICTURES)} file")
    if home is None:
        found = [found[i] for i in held_out(len(found), split, str(directory))]
    return FolderData(directory, tuple(found))


def held_out(samples: int, split: str, where: str) -> Sequence[int]:
    """Return the samples of a split of data that has no parts: every tenth is ``val``.

    Raises:
        InputError: if it is neither ``train`` nor ``val``, or there are fewer than two samples.
    """
    if split not in ("train", "val"):
        raise InputError(
            f"no split {split!r} in {where}: it has no parts, so that it is split into train and "
            f"val, every {HELD_OUT}th sample"
        )
    if samples < 2:
        raise InputError(
            f"{where} holds {samples} sample, and training and validation need one each"
        )
    step = min(HELD_OUT, samples)
    return [i for i in range(samples) if (i % step == step - 1) == (split == "val")]


def _split_of(directory: Path, split: str) -> Path:
    _require_directory(directory)
    root = directory / split
    if not root.is_dir():
        found = ", ".join(path.name for path in _folders(directory)) or "no folder"
        raise InputError(f"no split {split!r}: {root} does not exist; {directory} holds {found}")
    return root


def _require_directory(directory: Path) -> None:
    if not directory.is_dir():
        found = "it is a file" if directory.exists() else "it does not exist"
        raise InputError(f"no data set at {directory}: {found}; give the directory of a data set")


def _folders(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file()


def _pictures_below(folder: Path) -> "filter[Path]":
    return filter(_is_picture, folder.rglob("*"))
