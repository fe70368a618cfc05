"""Random crops of whole pictures: pure, of one size, of the share that was asked for."""

import pytest
import torch

from dynprune.data.folder_batches import FolderBatches, RandomCrop
from dynprune.data.folders import FolderData
from dynprune.data.normalise import normalise
from dynprune.errors import UsageError


def ramp(height, width):
    """A picture whose red and green are its row and column."""
    rows = torch.arange(height).view(-1, 1).expand(height, width)
    columns = torch.arange(width).expand(height, width)
    return torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)


def test_a_crop_is_a_pure_function_of_its_seed():
    crop = RandomCrop((16, 24))
    first, again, other = (crop(ramp(80, 100), seed=seed) for seed in (1, 1, 2))
    assert first.shape == (3, 16, 24)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("area", [(0.25, 0.25), (0.6, 0.6), (1.0, 1.0)])
def test_a_crop_covers_the_share_of_the_picture_that_was_asked_for(area):
    crop = RandomCrop((64, 64), area=area, flip=0.0, photometric=False)
    shares = []
    for seed in range(40):
        found = crop(ramp(120, 120), seed=seed)
        # Half a pixel of the result is cut off at either edge of a ramp.
        high, wide = ((found[i].max() - found[i].min()) * 64 / 63 for i in (0, 1))
        shares.append(float(high * wide) / 120**2)
    assert sum(shares) / len(shares) == pytest.approx(area[0], rel=0.06)


def test_a_flip_turns_left_and_right_alone():
    straight, flipped = (
        RandomCrop((16, 16), flip=flip, photometric=False)(ramp(40, 40), seed=3) for flip in (0, 1)
    )
    assert torch.equal(flipped, straight.flip(-1))


def test_a_picture_that_is_long_and_thin_is_cropped_too():
    for shape in ((4, 200), (200, 4), (1, 1)):
        assert RandomCrop((16, 16))(ramp(*shape), seed=0).shape == (3, 16, 16)


class Known(FolderData):
    """Pictures of one grey each, which is their number."""

    def picture(self, index):
        return torch.full((3, 8, 8), index, dtype=torch.uint8)


def batches(count=6, size=4, labels=True):
    data = Known(None, tuple(range(count)), tuple(range(0, 10 * count, 10)) if labels else ())
    return FolderBatches(data, size, 0, RandomCrop((4, 4), photometric=False))


def test_a_picture_goes_with_its_own_label_and_an_epoch_sees_each_once():
    source, seen = batches(), []
    for step in range(3):
        images, labels = source(step)
        assert images.shape == (4, 3, 4, 4)
        for image, label in zip(images, labels, strict=True):
            expected = normalise(torch.full((1, 3, 4, 4), float(label) / 10))[0]
            torch.testing.assert_close(image, expected)
        seen += labels.tolist()
    assert sorted(seen) == sorted([*range(0, 60, 10)] * 2)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_batch_without_overlap(processes):
    source = batches()
    whole, labels = source(5)
    for rank in range(processes):
        part, own = source.share(5, rank, processes)
        assert torch.equal(part, whole[rank::processes])
        assert torch.equal(own, labels[rank::processes])
    with pytest.raises(UsageError, match="cannot be shared evenly by 3"):
        source.share(5, 0, 3)


def test_without_classes_there_are_no_labels():
    assert batches(labels=False)(0)[1] is None
