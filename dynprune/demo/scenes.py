"""The embedded data set: real handwritten digits on plates, set in scenes of drawn textures.

It needs no network and no file: scikit-learn ships the digits (UCI's optical recognition of
handwritten digits, 1,797 of 8x8 pixels). Every digit of the validation scenes is one that no
training scene shows. A seed fixes every pixel.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dynprune.data.pictures import write_label, write_picture
from dynprune.errors import UsageError
from dynprune.files import written_directory

__all__ = ["CLASSES", "SIZE", "make_dataset"]

CLASSES = ("water", "tiles", "gravel", "bushes", "zero", "one", "four", "seven")
"""Names in index order: the textures, then what is written on the plates."""

SIZE = (96, 128)
"""Height and width of a scene, in pixels."""

_DIGITS = {0: 4, 1: 5, 4: 6, 7: 7}  # digit -> class index
_TEXTURES = 4
_TRAINING_DIGITS = 1400  # the first ones; validation scenes take from the rest
_COLOURS = ((60, 110, 180), (170, 90, 70), (150, 140, 110), (80, 150, 80))
_PLATE_SIDE = (34, 47)
_CORNER = 8

Array = NDArray[Any]


def make_dataset(
    directory: Path | str,
    *,
    training: int = 400,
    validation: int = 64,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write the embedded data set in the folder layout, whole or not at all.

    Args:
        directory: where it goes.
        training: scenes of the split ``train``.
        validation: scenes of the split ``val``.
        seed: of every scene.
        overwrite: replace a directory that is not empty.

    Returns:
        the directory, for :func:`~dynprune.data.open_dataset`.

    Raises:
        UsageError: if scikit-learn, which ships the digits, is not installed.
        OutputError: if the directory is not empty or cannot be written.
    """
    root = Path(directory)
    _digits()
    with written_directory(root, overwrite=overwrite) as beside:
        (beside / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
        for split, scenes in (("train", training), ("val", validation)):
            random = np.random.default_rng((seed, len(split)))
            for index in range(scenes):
                picture, label = _draw_scene(random, held_out=split == "val")
                name = f"{split}/{index:04d}.png"
                write_picture(beside / "images" / name, torch.from_numpy(picture).permute(2, 0, 1))
                write_label(beside / "annotations" / name, torch.from_numpy(label))
    return root


@lru_cache(maxsize=1)
def _digits() -> tuple[Array, Array]:
    """Return the digits, uint8 (1797, 8, 8), and which digit each is."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(
            "the demo's handwritten digits come with scikit-learn, which is not installed; "
            "run: pip install 'dynprune[demo]'"
        ) from error
    found = load_digits()
    return (found.images * 255 / 16).astype(np.uint8), found.target


def _draw_scene(random: np.random.Generator, *, held_out: bool) -> tuple[Array, Array]:
    """Draw two textures that meet in a wavy line, and three to five plates over them.

    Returns:
        uint8 picture ``(H, W, 3)`` and label ``(H, W)``.
    """
    first, second = random.permutation(_TEXTURES)[:2]
    side = _draw_border(random)
    picture = np.where(side[..., None], _draw_texture(first, random), _draw_texture(second, random))
    label = np.where(side, first, second).astype(np.uint8)
    taken: list[tuple[int, int, int]] = []
    for _ in range(random.integers(3, 6)):
        place = _find_room(taken, random)
        if place is None:
            continue
        taken.append(place)
        top, left, length = place
        here = (slice(top, top + length), slice(left, left + length))
        plate, shape, kind = _draw_plate(length, random, held_out=held_out)
        picture[here][shape] = plate[shape]
        label[here][shape] = kind
    return picture.clip(0, 255).astype(np.uint8), label


def _draw_border(random: np.random.Generator) -> Array:
    """Part the scene by a wavy line at any angle: bool ``(H, W)``."""
    height, width = SIZE
    y, x = np.mgrid[0:height, 0:width]
    angle = random.uniform(0, 2 * np.pi)
    across = (x - width / 2 - random.uniform(-20, 20)) * np.cos(angle)
    down = (y - height / 2 - random.uniform(-12, 12)) * np.sin(angle)
    wave = 4 * np.sin(x / 9 + random.uniform(0, 2 * np.pi))
    border: Array = across + down + wave > 0
    return border


def _draw_texture(kind: int, random: np.random.Generator) -> Array:
    """Draw one texture over the whole scene: float ``(H, W, 3)``."""
    height, width = SIZE
    y, x = np.mgrid[0:height, 0:width]
    angle, period = random.uniform(0, np.pi), random.uniform(7, 14)
    along = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period
    across = 2 * np.pi * (y * np.cos(angle) - x * np.sin(angle)) / period
    if kind == 0:
        relief = np.sin(along + random.uniform(0, 2 * np.pi) + 1.2 * np.sin(across / 4))
    elif kind == 1:
        relief = np.sign(np.sin(along) * np.sin(across))
    elif kind == 2:
        relief = random.normal(0, 1, SIZE)
    else:
        coarse = random.normal(0, 1.5, (height // 8 + 1, width // 8 + 1)).astype(np.float32)
        relief = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    colour = np.array(_COLOURS[kind]) + random.uniform(-35, 35, 3)
    grain = random.normal(0, 6, (height, width, 3))
    texture: Array = colour + random.uniform(18, 34) * relief[..., None] + grain
    return texture


def _find_room(
    taken: list[tuple[int, int, int]], random: np.random.Generator
) -> tuple[int, int, int] | None:
    """Find a square (top, left, side) that touches none of the taken ones, in twenty tries."""
    height, width = SIZE
    length = int(random.integers(*_PLATE_SIDE))
    for _ in range(20):
        top, left = (
            int(random.integers(0, height - length)),
            int(random.integers(0, width - length)),
        )
        if all(
            top + length <= y or y + other <= top or left + length <= x or x + other <= left
            for y, x, other in taken
        ):
            return top, left, length
    return None


def _draw_plate(
    length: int, random: np.random.Generator, *, held_out: bool
) -> tuple[Array, Array, int]:
    """Draw a bright plate with rounded corners and a dark digit on it.

    Returns:
        float picture ``(length, length, 3)``, bool shape of the plate, and its class index.
    """
    images, digits = _digits()
    fits = np.isin(digits, list(_DIGITS))
    fits &= (np.arange(len(digits)) >= _TRAINING_DIGITS) == held_out
    chosen = int(random.choice(np.flatnonzero(fits)))
    inner = length - 6
    large = Image.fromarray(images[chosen]).resize((inner, inner), Image.Resampling.BICUBIC)
    ink = np.pad(np.array(large, np.float32) / 255, 3)[..., None]
    paper, pen = random.uniform(200, 250, 3), random.uniform(0, 60, 3)
    plate = paper * (1 - ink) + pen * ink + random.normal(0, 6, (length, length, 3))
    place = np.arange(length)
    beyond = np.maximum(np.maximum(_CORNER - place, place - (length - 1 - _CORNER)), 0)
    shape = beyond[:, None] ** 2 + beyond[None, :] ** 2 <= _CORNER**2
    return plate, shape, _DIGITS[int(digits[chosen])]
