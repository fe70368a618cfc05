import pytest
import torch
from torch.nn import functional as F

from dynprune.data import VOID, augment
from dynprune.data.augment import distort, resized_crop

PLAIN = {"scale": (1.0, 1.0), "flip": 0.0, "photometric": False}


def sample(height=20, width=30, classes=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=random, dtype=torch.uint8)
    label = torch.randint(0, classes, (height, width), generator=random, dtype=torch.uint8)
    return image, label


def test_the_same_seed_gives_the_same_sample_whatever_torchs_own_state():
    image, label = sample()
    torch.manual_seed(1)
    first = augment(image, label, seed=7, crop=(16, 16))
    torch.manual_seed(2)
    second = augment(image, label, seed=7, crop=(16, 16))
    other = augment(image, label, seed=8, crop=(16, 16))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_torchs_own_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    augment(*sample(), seed=3, crop=(16, 16))
    assert torch.equal(torch.rand(1), expected)


def test_nothing_to_do_leaves_the_sample_as_it_is():
    image, label = sample()
    picture, target = augment(image, label, seed=0, crop=(20, 30), **PLAIN)
    assert torch.equal(picture, image.float())
    assert torch.equal(target, label.long())
    assert target.dtype == torch.int64


def test_a_sample_smaller_than_the_crop_is_padded_with_void_and_the_fill_colour():
    image, label = sample()
    fill = (1.0, 2.0, 3.0)
    picture, target = augment(image, label, seed=0, crop=(25, 40), fill=fill, **PLAIN)
    assert torch.equal(picture[:, :20, :30], image.float())
    outside = torch.ones(25, 40, dtype=torch.bool)
    outside[:20, :30] = False
    assert (target[outside] == VOID).all()
    assert torch.equal(picture[:, outside].unique(dim=1).flatten(), torch.tensor(fill))


def test_a_flip_mirrors_picture_and_labels_alike():
    image, label = sample()
    arguments = {**PLAIN, "flip": 1.0}
    picture, target = augment(image, label, seed=0, crop=(20, 30), **arguments)
    assert torch.equal(picture, image.float().flip(-1))
    assert torch.equal(target, label.long().flip(-1))


@pytest.mark.parametrize("size", [(20, 30), (10, 15), (33, 47), (40, 60), (7, 90)])
def test_a_resized_crop_is_the_crop_of_the_whole_resized_sample(size):
    image, label = sample()
    whole = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False)[0]
    nearest = F.interpolate(label[None, None].float(), size, mode="nearest-exact")[0, 0]
    top, left = 2, 5
    picture, target = resized_crop(image, label, size, (top, left), (12, 10))
    expected = whole[:, top : top + 12, left : left + 10]
    # both interpolate in float32: 255 times some roundings of 6e-8
    torch.testing.assert_close(picture, expected, rtol=0, atol=1e-3)
    assert torch.equal(target.float(), nearest[top : top + 12, left : left + 10])


def test_the_label_stays_on_the_pixel_that_it_was_drawn_for():
    label = (4 * torch.arange(30).byte()).expand(20, 30).contiguous()
    image = label.repeat(3, 1, 1)
    for seed in range(20):
        picture, target = augment(image, label, seed=seed, crop=(12, 12), photometric=False)
        seen = target != VOID
        # the nearest pixel is at most half a pixel away, and the ramp rises 4 a pixel
        assert (picture[0][seen] - target[seen]).abs().max() <= 4 / 2 + 1e-3


def test_the_scale_spans_its_whole_range():
    image, label = torch.zeros(3, 100, 100, dtype=torch.uint8), torch.zeros(100, 100).byte()
    label[::2] = 1
    shares = []
    for seed in range(60):
        _, target = augment(image, label, seed=seed, crop=(200, 200), photometric=False)
        shares.append(float((target != VOID).float().mean().sqrt()) * 2)
    assert 0.5 <= min(shares) < 0.65
    assert 1.85 < max(shares) <= 2.0


def test_a_crop_filled_by_one_class_is_drawn_again():
    label = torch.zeros(64, 64, dtype=torch.uint8)
    label[:32, :32] = 1
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    mixed = 0
    for seed in range(40):
        _, target = augment(image, label, seed=seed, crop=(16, 16), **PLAIN)
        mixed += len(target.unique()) > 1
    # one corner in seven holds both classes by itself; ten draws find one most of the time
    assert mixed > 25


def test_distortion_stays_in_range_and_moves_no_pixel():
    grey = torch.full((3, 4, 6), 128.0)
    seen = set()
    for seed in range(30):
        picture = distort(grey, torch.Generator().manual_seed(seed))
        assert picture.min() >= 0
        assert picture.max() <= 255
        assert len(picture.flatten(1).unique(dim=1)[0]) == 1
        seen.add(round(float(picture.mean()), 3))
    assert len(seen) > 10
