import pytest
import torch
from torch import nn

from dynprune.data import read_label, read_picture
from dynprune.errors import InputError, UsageError
from dynprune.tasks.predict import overlay, palette, predict, predict_files
from tests.data.scenes import picture, write_png


class Halves(nn.Module):
    """Class 1 on the left half, class 2 on the right, at a quarter of the resolution."""

    def forward(self, images):
        batch, _, height, width = images.shape
        logits = images.new_zeros(batch, 3, height // 4, width // 4)
        logits[:, 1, :, : width // 8] = 1
        logits[:, 2, :, width // 8 :] = 1
        return (logits,)


def test_every_pixel_gets_the_label_of_its_largest_logit():
    image = torch.from_numpy(picture(0, (16, 32))).to(torch.uint8).permute(2, 0, 1)
    label = predict(Halves(), image)
    assert label.shape == (16, 32)
    assert label.dtype == torch.uint8
    assert (label[:, :16] == 1).all()
    assert (label[:, 16:] == 2).all()


def test_every_class_has_its_own_bright_colour_whatever_the_number_of_classes():
    colours = palette(255)
    assert len(colours.unique(dim=0)) == 255
    assert torch.equal(palette(11), colours[:11])
    assert colours.amax(1).min() > 180
    few = colours[:20].double()
    apart = torch.cdist(few, few) + 1000 * torch.eye(20)
    assert apart.min() > 25  # of 442 from black to white: seen at a glance


def test_an_overlay_goes_from_the_picture_to_the_colours():
    image = torch.from_numpy(picture(0)).to(torch.uint8).permute(2, 0, 1)
    label = torch.randint(0, 5, image.shape[1:]).byte()
    assert torch.equal(overlay(image, label, opacity=0.0), image)
    assert torch.equal(overlay(image, label, opacity=1.0), palette()[label.long()].permute(2, 0, 1))


def test_overlay_and_labels_are_written_for_every_picture(tmp_path):
    paths = [write_png(tmp_path / f"in/{k}.jpg", picture(k, (16, 24 + 8 * k))) for k in range(2)]
    done = list(predict_files(Halves(), paths, tmp_path / "out"))
    assert [made.image for made in done] == paths
    for path, made in zip(paths, done, strict=True):
        image = read_picture(path)
        label = predict(Halves(), image)
        assert torch.equal(read_label(made.labels), label)
        assert torch.equal(read_picture(made.overlay), overlay(image, label))
        assert made.shares == {1: pytest.approx(0.5, abs=0.13), 2: pytest.approx(0.5, abs=0.13)}
        assert sum(made.shares.values()) == pytest.approx(1.0)
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_two_pictures_of_one_name_are_refused_before_anything_is_written(tmp_path):
    paths = [write_png(tmp_path / f"{folder}/a.png", picture(0)) for folder in "xy"]
    with pytest.raises(UsageError, match=r"would both be written to a\.png"):
        next(predict_files(Halves(), paths, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_picture_is_refused_and_nothing_is_written_for_it(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.png is not a picture"):
        next(predict_files(Halves(), [tmp_path / "a.png"], tmp_path / "out"))
    assert not (tmp_path / "out").exists()
