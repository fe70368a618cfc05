import torch

from dynprune.data import IMAGENET_MEAN, IMAGENET_STD, normalise


def test_the_mean_colour_becomes_zero_and_one_deviation_becomes_one():
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None] * 255
    std = torch.tensor(IMAGENET_STD)[:, None, None] * 255
    # float32 keeps seven digits of numbers up to 255
    assert normalise(mean).abs().max() < 1e-5
    assert (normalise(mean + std) - 1).abs().max() < 1e-5


def test_a_batch_is_normalised_sample_by_sample():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    together = normalise(images, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert together.dtype == torch.float32
    for image, result in zip(images, together, strict=True):
        assert torch.equal(normalise(image, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), result)
