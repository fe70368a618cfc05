"""Tiny data sets on disk, in the layouts that dynprune reads."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (12, 16)


def write_png(path: Path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)
    return path


def picture(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3))


def labels(seed, classes=3, size=SIZE):
    return np.random.default_rng(seed).integers(0, classes, size)


def folder(root: Path, *, samples=4, classes=("sky", "road", "tree"), splits=("train", "val")):
    """A folder-layout data set of noise; sizes differ between samples."""
    for split in splits:
        for index in range(samples):
            size = (SIZE[0] + index, SIZE[1])
            write_png(root / f"images/{split}/{index}.png", picture(index, size))
            label = labels(index, max(len(classes), 1), size)
            write_png(root / f"annotations/{split}/{index}.png", label)
    if classes:
        (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return root


def ade20k(root, *, samples=2):
    for part in ("training", "validation"):
        for index in range(samples):
            stem = f"ADE_{part}_{index:08d}"
            write_png(root / f"images/{part}/{stem}.jpg", picture(index))
            write_png(root / f"annotations/{part}/{stem}.png", labels(index, 151))
    return root


def cityscapes(root, *, kind="labelTrainIds", classes=19):
    for split, city in (("train", "aachen"), ("train", "bonn"), ("val", "ulm")):
        stem = f"{city}_000000_000019"
        write_png(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", picture(0))
        write_png(root / f"gtFine/{split}/{city}/{stem}_gtFine_{kind}.png", labels(0, classes))
    return root
