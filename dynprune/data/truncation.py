"""Whether a PNG or JPEG file holds the pixels that it declares; decoders fill in what is missing.

Pillow gives a PNG whose stream ends early the value 0 for the rest, and libjpeg a JPEG the value
grey, both without a word. So a file of a few bytes could stand for millions of pixels.
"""

import zlib
from pathlib import Path

from PIL import Image

__all__ = ["missing_pixels"]

# A JPEG spends at least a bit on a block of 8x8 pixels, and DEFLATE a byte on 1032 bytes.
_PIXELS_PER_BYTE = 512
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
           (0, 1, 1, 2))  # fmt: skip
"""Adam7's first column, first row, and steps."""


def missing_pixels(path: Path, picture: Image.Image) -> str | None:
    """Say what is missing of a picture that was decoded; None where it is whole.

    Args:
        path: its file.
        picture: loaded.
    """
    width, height = picture.size
    if picture.format == "JPEG" and width * height > path.stat().st_size * _PIXELS_PER_BYTE:
        return f"it declares {width}x{height} pixels in {path.stat().st_size} bytes"
    if picture.format == "PNG" and _ends_in_zeros(picture):
        return _missing_of_png(path)
    return None


def _ends_in_zeros(picture: Image.Image) -> bool:
    """Whether the last row is all zero, as it is where the stream ended before it."""
    if picture.info.get("interlace"):
        return True
    width, height = picture.size
    return picture.crop((0, height - 1, width, height)).getbbox(alpha_only=False) is None


def _missing_of_png(path: Path) -> str | None:
    """Inflate a PNG's stream and compare its length with what the header asks for."""
    data = path.read_bytes()
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    depth, colour, interlaced = data[24], data[25], data[28]
    bits = depth * _CHANNELS.get(colour, 0)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    wanted = 0
    for left, top, right, down in passes:
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0:
            wanted += rows * (1 + (columns * bits + 7) // 8)
    stream, found = zlib.decompressobj(), 0
    at = 8
    while at + 8 <= len(data) and found < wanted and not stream.eof:
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            found += len(stream.decompress(data[at + 8 : at + 8 + length], wanted - found))
            while found < wanted and stream.unconsumed_tail:
                found += len(stream.decompress(stream.unconsumed_tail, wanted - found))
        at += 12 + length
    return None if found >= wanted else f"it holds {found} of {wanted} bytes of pixels"
