"""Read and write single pictures and label maps, refusing what is not one by its file's name.

Every reader raises :class:`~dynprune.errors.InputError` with the file's path; none returns a
guess. Pictures are uint8 ``(3, H, W)``, label maps uint8 ``(H, W)``.
"""

import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dynprune.data.truncation import missing_pixels
from dynprune.errors import InputError, OutputError

__all__ = [
    "MAX_PIXELS",
    "read_label",
    "read_picture",
    "read_upright",
    "write_label",
    "write_picture",
]

MAX_PIXELS = 64_000_000
"""Pixels of the largest picture that is decoded: a small file can claim to hold gigabytes."""

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # no format that runs a program, as EPS does
_LABEL_MODES = ("L", "P", "1")
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L")  # more than 8 bits a pixel
_LARGEST_LABEL = 255
_ORIENTATION = 0x0112  # EXIF's tag


_Pixels = NDArray[np.uint8]


def _decode(path: Path, take: Callable[[Image.Image], _Pixels]) -> Tensor:
    """Open and decode a picture and take its pixels; every way to fail is an InputError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns of is refused, or does not matter
        try:
            picture = Image.open(path, formats=_FORMATS)
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist") from error
        except IsADirectoryError as error:
            raise InputError(
                f"{path} is a directory; a picture (JPEG, PNG) was expected"
            ) from error
        except UnidentifiedImageError as error:
            raise InputError(
                f"{path} is not a picture that can be read; give a JPEG or PNG file, or remove it"
            ) from error
        except Image.DecompressionBombError as error:
            raise InputError(_too_large(path, str(error))) from error
        except _BROKEN as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        with picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise InputError(_too_large(path, f"it claims to hold {width}x{height} pixels"))
            try:
                picture.load()
                if missing := missing_pixels(path, picture):
                    raise InputError(f"{path} is truncated: {missing}; copy it again, or remove it")
                return torch.from_numpy(take(picture))
            except InputError:
                raise
            except _BROKEN as error:
                raise InputError(
                    f"{path} is truncated or damaged ({error}); copy it again, or remove it"
                ) from error


def _too_large(path: Path, found: str) -> str:
    return (
        f"{path} is too large to decode: {found}, and the limit is {MAX_PIXELS} pixels; "
        "tile or shrink the picture"
    )


def read_picture(path: Path) -> Tensor:
    """Read a photograph as RGB, turned upright by its EXIF orientation.

    Returns:
        uint8 tensor ``(3, H, W)``.

    Raises:
        InputError: if the file is missing, is not a picture, is damaged, is larger than
            :data:`MAX_PIXELS`, or has more than 8 bits a channel.
    """
    return read_upright(path)[0]


def read_upright(path: Path) -> tuple[Tensor, int]:
    """Read a photograph as :func:`read_picture` does, and tell how it had to be turned.

    Returns:
        uint8 tensor ``(3, H, W)``, and the EXIF orientation: 1 where the picture is stored
        upright, 5 to 8 where turning it exchanges its height and width.

    Raises:
        InputError: as :func:`read_picture`.
    """
    orientation = 1

    def take(picture: Image.Image) -> _Pixels:
        nonlocal orientation
        if picture.mode.startswith(("I", "F")):
            raise InputError(
                f"{path} has more than 8 bits a channel (mode {picture.mode}); "
                "convert it to 8-bit RGB"
            )
        orientation = int(picture.getexif().get(_ORIENTATION, 1))
        return np.array(ImageOps.exif_transpose(picture).convert("RGB"))

    pixels = _decode(path, take).permute(2, 0, 1).contiguous()
    return pixels, orientation if 1 < orientation <= 8 else 1


def read_label(path: Path) -> Tensor:
    """Read a label map as it is stored: one value a pixel, never turned.

    A palette's colours play no part: the value is the index. Files of 16 bits a pixel are read
    where every value fits in 8.

    Returns:
        uint8 tensor ``(H, W)``.

    Raises:
        InputError: as :func:`read_picture`, and if the file holds colours instead of indices, or
            values over 255.
    """

    def take(picture: Image.Image) -> _Pixels:
        if picture.mode not in (*_LABEL_MODES, *_WIDE_MODES):
            raise InputError(
                f"{path} is no label map: its mode is {picture.mode}, and a label map holds one "
                "8-bit class index a pixel (mode L or P); turn its colours into indices"
            )
        values = np.array(picture)
        if picture.mode in _WIDE_MODES:
            _check_range(path, values)
        elif picture.mode == "L" and picture.format == "PNG":
            values = values // _spread_of(path)
        return values.astype(np.uint8)

    return _decode(path, take)


def _check_range(path: Path, values: NDArray[Any]) -> None:
    """Refuse values that no byte holds."""
    wrong = values[(values < 0) | (values > _LARGEST_LABEL)]
    if wrong.size:
        value = int(wrong.max())
        raise InputError(
            f"{path} holds the value {value} at {int((wrong == value).sum())} pixels (16 bits a "
            f"pixel); labels lie between 0 and {_LARGEST_LABEL}, and {_LARGEST_LABEL} is void: "
            "write the file anew with class indices"
        )


def _spread_of(path: Path) -> int:
    """Tell by what Pillow multiplies the grey values of a PNG of 2 or 4 bits a pixel."""
    with path.open("rb") as file:
        depth = file.read(25)[-1]
    return {2: 85, 4: 17}.get(depth, 1)


def write_picture(path: Path, picture: Tensor) -> None:
    """Write a uint8 ``(3, H, W)`` tensor; the format follows the suffix, the file is atomic."""
    _save(path, Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()))


def write_label(path: Path, label: Tensor, palette: Tensor | None = None) -> None:
    """Write a uint8 ``(H, W)`` label map as PNG, with ``palette`` (uint8, (N, 3)) if given."""
    picture = Image.fromarray(label.contiguous().numpy())
    if palette is not None:
        picture.putpalette(palette.flatten().tolist())
    _save(path, picture)


def _save(path: Path, picture: Image.Image) -> None:
    """Write beside ``path``, then rename: a reader sees the whole file or none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
        )
        try:
            os.fchmod(handle, 0o644)
            with os.fdopen(handle, "wb") as file:
                picture.save(file, format=Image.registered_extensions()[path.suffix.lower()])
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error
