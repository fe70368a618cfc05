import numpy as np
import pytest
import torch
from PIL import Image

from dynprune.data import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Resize, normalise
from dynprune.errors import InputError

NOISE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 12, 20), dtype=np.uint8))


def test_a_picture_goes_in_at_full_size_by_default():
    assert torch.equal(Preprocessing()(NOISE), normalise(NOISE[None], IMAGENET_MEAN, IMAGENET_STD))


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        (Resize(height=7, width=9), (12, 20), (7, 9)),
        (Resize(shortest_edge=6), (12, 20), (6, 10)),
        (Resize(shortest_edge=6), (20, 12), (10, 6)),
        (Resize(shortest_edge=6), (12, 12), (6, 6)),
        (Resize(shortest_edge=6, longest_edge=8), (12, 20), (4, 8)),
        (Resize(shortest_edge=6, longest_edge=99), (12, 20), (6, 10)),
        (Resize(longest_edge=10), (12, 20), (6, 10)),
        (Resize(longest_edge=1), (12, 20), (1, 1)),
    ],
)
def test_a_size_is_fixed_or_keeps_the_proportions(resize, size, expected):
    assert resize.size_of(*size) == expected


@pytest.mark.parametrize("resample", range(6))
def test_a_picture_is_resized_as_pillow_does(resample):
    resize = Resize(height=7, width=9, resample=resample)
    picture = Image.fromarray(NOISE.permute(1, 2, 0).numpy())
    expected = np.array(picture.resize((9, 7), resample)).transpose(2, 0, 1)
    assert torch.equal(resize(NOISE), torch.from_numpy(expected))
    made = Preprocessing((0, 0, 0), (1, 1, 1), resize)(NOISE)
    assert torch.allclose(made[0] * 255, torch.from_numpy(expected).float())


def test_a_picture_of_the_right_size_is_left_alone():
    assert Resize(shortest_edge=12)(NOISE) is NOISE


def test_a_size_beyond_any_picture_is_refused():
    strip = torch.zeros(3, 1, 2000, dtype=torch.uint8)
    with pytest.raises(InputError, match="more than 64000000 pixels"):
        Resize(shortest_edge=4000)(strip)


def test_it_is_told_in_words_and_as_plain_values():
    plain = Preprocessing((0, 0, 0), (1, 1, 1), Resize(shortest_edge=6, longest_edge=8))
    assert plain.describe() == (
        "pixels from 0 to 1, resized to a shorter side of 6, at most 8, bilinear"
    )
    assert plain.to_json() == {
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "resize": {"shortest_edge": 6, "longest_edge": 8, "resample": "bilinear"},
        "window": None,
    }
    usual = Preprocessing(window=(8, 9)).describe()
    assert usual.startswith("mean 0.485 0.456 0.406, std 0.229")
    assert usual.endswith("at full size, windows of 8x9")
