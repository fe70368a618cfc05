from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dynprune.data import VOID, LabelValues, Preprocessing, Resize, open_dataset
from dynprune.errors import InputError
from dynprune.host.modes import evaluating
from dynprune.tasks.evaluate import evaluate, score
from tests.data.scenes import folder, write_png

SHARED = Path(__file__).parents[2] / "shared"


class FromRed(nn.Module):
    """Says class k where the red channel, from 0 to 255, is k; one logit map a class."""

    def __init__(self, classes, offset=0):
        super().__init__()
        self.classes, self.offset = classes, offset
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        red = (images[:, 0] * 255).round() + self.offset
        index = torch.arange(self.classes, device=images.device)[:, None, None]
        return {"logits": -(red[:, None] - index).abs()}


PLAIN = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def scene(root, truth, found, names):
    """A data set whose label maps are ``truth`` and whose red channels are ``found``."""
    for index, (label, red) in enumerate(zip(truth, found, strict=True)):
        write_png(root / f"annotations/val/{index}.png", label)
        write_png(root / f"images/val/{index}.png", np.stack([red] * 3, axis=-1))
    (root / "classes.txt").write_text("\n".join(names))
    return open_dataset(root)


def test_scores_agree_with_counting_pixels_by_hand(tmp_path):
    random = np.random.default_rng(0)
    sizes = [(7, 9), (12, 5)]
    truth = [random.choice([0, 1, 2, VOID], size) for size in sizes]
    found = [random.choice(4, size) for size in sizes]
    data = scene(tmp_path, truth, found, "abcd")
    result = evaluate(FromRed(4), data, PLAIN)

    pixels = [
        (t, f)
        for label, red in zip(truth, found, strict=True)
        for t, f in zip(label.flat, red.flat, strict=True)
        if t != VOID
    ]
    expected = {}
    for index, name in enumerate("abc"):
        both = sum(t == index and f == index for t, f in pixels)
        either = sum(t == index or f == index for t, f in pixels)
        expected[name] = both / either
    assert result.images == 2
    assert result.per_class["d"] is None  # found, but never true
    for name, iou in expected.items():
        assert result.per_class[name] == pytest.approx(iou)
    assert result.miou == pytest.approx(sum(expected.values()) / 3)
    assert result.pixel_accuracy == pytest.approx(np.mean([t == f for t, f in pixels]))
    assert result.confusion.sum() == len(pixels)


def test_a_right_model_scores_one_and_a_wrong_one_zero(tmp_path):
    label = [np.random.default_rng(0).integers(0, 3, (6, 6))]
    data = scene(tmp_path, label, label, "abc")
    assert evaluate(FromRed(3), data, PLAIN).miou == 1.0
    wrong = scene(tmp_path, [np.zeros((6, 6))], [np.ones((6, 6))], "abc")
    assert evaluate(FromRed(3), wrong, PLAIN).to_json() == {
        "images": 1,
        "miou": 0.0,
        "pixel_accuracy": 0.0,
        "per_class": {"a": 0.0, "b": None, "c": None},
    }


def test_pictures_go_in_one_by_one_at_their_own_size_and_progress_is_told(tmp_path):
    data = open_dataset(folder(tmp_path))
    model, told = FromRed(3), []
    evaluate(model, data, progress=lambda done, total: told.append((done, total)))
    assert model.seen == [(1, 3, 12 + index, 16) for index in range(4)]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_windows_of_a_pointwise_model_score_as_the_whole_picture(tmp_path):
    data = open_dataset(folder(tmp_path))
    whole = evaluate(FromRed(3), data)
    model = FromRed(3)
    assert torch.equal(
        evaluate(model, data, Preprocessing(window=(8, 8))).confusion, whole.confusion
    )
    assert {shape[-2:] for shape in model.seen} == {(8, 8)}


def test_the_models_modes_are_left_as_they_were(tmp_path):
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout()))
    model.train()
    model[1].eval()
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == [True, True, False, False, False]
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model.training


def test_a_model_of_other_classes_than_the_data_is_refused(tmp_path):
    data = open_dataset(folder(tmp_path))
    with pytest.raises(InputError, match=r"logits of 5 classes, but .* has 3 \(sky to tree\)"):
        evaluate(FromRed(5), data)


def test_where_nothing_names_the_classes_they_are_those_of_the_model(tmp_path):
    """A split need not show every class, nor a model know every number of the training split."""
    truth = np.array([[0, 1], [2, VOID]])
    data = scene(tmp_path, [truth], [truth], "abc")
    (tmp_path / "classes.txt").unlink()
    data = open_dataset(tmp_path)
    found = evaluate(FromRed(5), data, PLAIN)
    assert list(found.per_class) == [f"class {index}" for index in range(5)]
    assert found.absent == ("class 3", "class 4")
    assert found.miou == 1.0
    with pytest.raises(InputError, match=r"0\.png holds the value 2 \(1 pixel\), but .* 2 classes"):
        evaluate(FromRed(2), data, PLAIN)


def test_the_share_of_void_is_told(tmp_path):
    truth = np.array([[0, 1, VOID, VOID]])
    data = scene(tmp_path, [truth, truth], [truth, truth], "abc")
    assert evaluate(FromRed(3), data, PLAIN).void == 0.5


def test_masks_of_0_and_255_are_refused(tmp_path):
    truth = np.array([[0, 255], [0, 0]])
    data = scene(tmp_path, [truth], [truth], ["background", "crack"])
    with pytest.raises(InputError, match=r"255 alone .* no pixel would ever be crack"):
        evaluate(FromRed(2), data, PLAIN)
    read = open_dataset(tmp_path, values=LabelValues(mapping={255: 1}))
    assert evaluate(FromRed(2), read, PLAIN).per_class["crack"] == 1.0


def test_a_resized_picture_is_scored_at_its_labels_own_size(tmp_path):
    data = open_dataset(folder(tmp_path))
    model = FromRed(3)
    evaluate(model, data, Preprocessing(resize=Resize(height=6, width=8)))
    assert model.seen == [(1, 3, 6, 8)] * 4


def test_a_model_that_labels_no_pixels_is_refused(tmp_path):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="is it a segmentation model"):
        evaluate(model, open_dataset(folder(tmp_path)))


def test_a_picture_that_is_too_small_for_the_model_is_refused_by_its_name(tmp_path):
    data = open_dataset(folder(tmp_path, samples=1))
    with pytest.raises(InputError, match=r"val/0\.png is 16x12, which the model cannot take"):
        evaluate(nn.Conv2d(3, 3, 32), data)


def test_a_models_own_failure_on_a_large_picture_is_not_hidden(tmp_path):
    data = scene(tmp_path, [np.zeros((70, 70))], [np.zeros((70, 70))], "abc")
    with pytest.raises(RuntimeError, match="channels"):
        evaluate(nn.Conv2d(4, 3, 1), data)


def test_a_data_set_of_void_alone_is_refused():
    with pytest.raises(InputError, match="all are void"):
        score(torch.zeros(2, 2), ("a", "b"), images=3)


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "data/camvid").is_dir(), reason="CamVid is not beside the project"
)
def test_the_published_score_of_the_camvid_teacher_is_reproduced():
    from dynprune.models import load_model

    loaded = load_model(str(SHARED / "models/segformer-b0-camvid"))
    data = open_dataset(SHARED / "data/camvid")
    assert loaded.classes == data.classes
    result = evaluate(loaded.module, data)
    # the teacher's README gives four digits
    assert result.miou == pytest.approx(0.5381, abs=1e-3)
    assert result.pixel_accuracy == pytest.approx(0.8615, abs=1e-3)
    assert result.images == 101
