"""A picture holds the pixels that it declares, or is refused."""

import struct
import zlib

import pytest
import torch
from PIL import Image

from dynprune.data.pictures import read_label, read_picture
from dynprune.errors import InputError


def png(path, height, rows, colour=2, width=6):
    """Write a PNG that declares ``height`` rows and holds ``rows``."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    stream = zlib.compress(b"".join(b"\0" + bytes([9] * width * channels) for _ in range(rows)))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))]
    parts += [(b"IDAT", stream[:7]), (b"IDAT", stream[7:]), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("colour", [0, 2, 6])
def test_a_png_whose_rows_end_early_is_refused(tmp_path, colour):
    whole = read_picture(png(tmp_path / "whole.png", 50, 50, colour))
    assert whole.shape == (3, 50, 6)
    with pytest.raises(InputError, match="bytes of pixels"):
        read_picture(png(tmp_path / "short.png", 50, 49, colour))


def test_a_label_map_whose_rows_end_early_is_refused(tmp_path):
    with pytest.raises(InputError, match="bytes of pixels"):
        read_label(png(tmp_path / "short.png", 60_000, 10, 0))


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "RGBA", "LA"])
@pytest.mark.parametrize("size", [(1, 1), (9, 7), (64, 33)])
def test_black_pictures_are_whole(tmp_path, mode, size):
    Image.new(mode, size).save(tmp_path / "black.png")
    assert not read_picture(tmp_path / "black.png").any()


def test_a_jpeg_of_a_few_bytes_is_no_picture_of_millions_of_pixels(tmp_path):
    path = tmp_path / "p.jpg"
    Image.fromarray(torch.randint(0, 255, (16, 16, 3), dtype=torch.uint8).numpy()).save(path)
    data = path.read_bytes()
    at = data.index(b"\xff\xc0") + 5
    path.write_bytes(data[:at] + struct.pack(">HH", 8000, 8000) + data[at + 4 :])
    with pytest.raises(InputError, match="8000x8000 pixels in"):
        read_picture(path)


def test_the_emptiest_jpeg_is_still_believed(tmp_path):
    path = tmp_path / "p.jpg"
    Image.new("L", (4096, 4096), 128).save(path, quality=1, progressive=True, optimize=True)
    assert read_picture(path).shape == (3, 4096, 4096)
