import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dynprune.data import pictures
from dynprune.data.pictures import read_label, read_picture, write_label, write_picture
from dynprune.errors import InputError, OutputError
from tests.data.scenes import labels, picture, write_png


def png_that_claims(width, height):
    """A PNG of some bytes whose header claims any size."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_picture_is_read_as_it_was_written(tmp_path):
    written = torch.from_numpy(picture(0)).to(torch.uint8).permute(2, 0, 1)
    write_picture(tmp_path / "new" / "a.png", written)
    assert torch.equal(read_picture(tmp_path / "new" / "a.png"), written)


def test_a_label_map_is_read_as_it_was_written_with_or_without_a_palette(tmp_path):
    written = torch.from_numpy(labels(0)).to(torch.uint8)
    palette = torch.arange(9, dtype=torch.uint8).reshape(3, 3)
    for name, colours in (("plain.png", None), ("coloured.png", palette)):
        write_label(tmp_path / name, written, colours)
        assert torch.equal(read_label(tmp_path / name), written)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_a_picture_of_any_8_bit_mode_becomes_three_channels(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(picture(0).astype(np.uint8)).convert(mode).save(path)
    assert read_picture(path).shape == (3, 12, 16)


def test_a_picture_is_turned_upright_by_its_exif_orientation(tmp_path):
    array = picture(0).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(array, -1).transpose(2, 0, 1).copy()
    assert torch.equal(read_picture(tmp_path / "a.png"), torch.from_numpy(upright))


def grey_png(path, values, depth):
    """A grey PNG of 1, 2, 4, 8 or 16 bits a pixel, which Pillow itself does not write."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    rows = b""
    for row in values:
        bits = "".join(format(value, f"0{depth}b") for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">IIBBBBB", len(values[0]), len(values), depth, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_label_map_holds_its_indices_whatever_bits_a_pixel_has(tmp_path, depth):
    """Pillow stretches grey values of 2 and 4 bits to 255, which would turn 3 into void."""
    values = (np.arange(15).reshape(3, 5) % 2 ** min(depth, 8)).tolist()
    grey_png(tmp_path / "a.png", values, depth)
    assert read_label(tmp_path / "a.png").tolist() == values


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_of_few_colours_holds_indices_too(tmp_path, bits):
    written = np.arange(15, dtype=np.uint8).reshape(3, 5) % 2**bits
    picture = Image.fromarray(written)
    picture.putpalette([255, 0, 0, 0, 255, 0] * 8)
    picture.save(tmp_path / "a.png", bits=bits)
    assert torch.equal(read_label(tmp_path / "a.png"), torch.from_numpy(written))


def test_a_label_of_16_bits_that_no_byte_holds_is_refused_with_its_count(tmp_path):
    grey_png(tmp_path / "a.png", [[0, 1, 65535], [65535, 2, 300]], 16)
    with pytest.raises(InputError, match=r"a\.png holds the value 65535 at 2 pixels"):
        read_label(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "F"])
def test_a_label_map_of_colours_is_refused(tmp_path, mode):
    path = tmp_path / ("a.png" if mode in ("RGB", "RGBA", "LA") else "a.tif")
    Image.fromarray(picture(0).astype(np.uint8)).convert(mode).save(path)
    with pytest.raises(InputError, match=f"its mode is {mode}.*turn its colours into indices"):
        read_label(path)


def test_a_label_map_is_never_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    written = labels(0).astype(np.uint8)
    Image.fromarray(written).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_label(tmp_path / "a.png"), torch.from_numpy(written))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a picture", "is not a picture"),
        (b"", "is not a picture"),
        (b"\x89PNG\r\n\x1a\n", "is not a picture|cannot be read"),
        (png_that_claims(9000, 9000), "too large to decode"),
        (png_that_claims(60000, 60000), "too large to decode"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_name(tmp_path, content, message):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    for read in (read_picture, read_label):
        with pytest.raises(InputError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_picture_is_refused(tmp_path, suffix, share):
    path = write_png(tmp_path / f"a{suffix}", picture(0, (64, 64)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=f"a{suffix}.*(truncated|not a picture|cannot be read)"):
        read_picture(path)


def test_a_missing_picture_and_a_directory_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_picture(tmp_path / "absent.png")
    with pytest.raises(InputError, match="is a directory"):
        read_picture(tmp_path)


def test_a_picture_of_16_bits_is_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="more than 8 bits"):
        read_picture(tmp_path / "deep.png")


def test_colours_are_refused_as_labels(tmp_path):
    path = write_png(tmp_path / "a.png", picture(0))
    with pytest.raises(InputError, match="no label map: its mode is RGB"):
        read_label(path)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(pictures.os, "replace", fail)
    with pytest.raises(OutputError, match="disk full"):
        write_label(tmp_path / "a.png", torch.zeros(4, 4, dtype=torch.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_a_damaged_picture_is_read_or_refused_and_never_crashes(tmp_path, suffix):
    path = write_png(tmp_path / f"a{suffix}", picture(0, (24, 24)))
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read_picture(path)
        except InputError:
            refused += 1
    assert refused or suffix == ".bmp"  # most of a BMP's bytes are plain pixels


def test_a_format_that_would_run_a_program_is_not_a_picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture(0).astype(np.uint8)).save(path, format="EPS")
    with pytest.raises(InputError, match="is not a picture"):
        read_picture(path)
