"""A comparison scores both models as evaluation does, and counts where they differ."""

import numpy as np
import pytest
import torch
from PIL import Image

from dynprune.data import VOID, open_dataset
from dynprune.errors import InputError
from dynprune.measure.compare import compare
from dynprune.tasks.evaluate import evaluate
from dynprune.tasks.predict import predict
from tests.data.scenes import write_png
from tests.report.conftest import noise


def test_both_scores_are_those_of_evaluation(measured) -> None:
    found = measured.found.comparison
    for score, model in ((found.student, measured.student), (found.teacher, measured.teacher)):
        assert score.to_json() == evaluate(model.module, measured.data).to_json()
        assert torch.equal(score.confusion, evaluate(model.module, measured.data).confusion)
    assert found.change == found.student.miou - found.teacher.miou


def test_disagreement_is_the_share_of_labelled_pixels_that_differ(measured) -> None:
    for index, share in enumerate(measured.found.comparison.disagreement):
        image, label = measured.data.load(index)
        one, other = (predict(m.module, image) for m in (measured.student, measured.teacher))
        known = label != VOID
        assert share == pytest.approx(float((one != other)[known].float().mean()))


def test_a_model_agrees_with_itself(measured) -> None:
    teacher = measured.teacher.module
    found = compare(teacher, teacher, measured.data)
    assert found.change == 0
    assert set(found.disagreement) == {0.0}


def test_without_a_teacher_the_label_stands_in(measured) -> None:
    seen = []
    found = compare(
        measured.student.module, None, measured.data, progress=lambda *a: seen.append(a)
    )
    assert found.teacher is None
    assert found.change is None
    wrong = 1 - sum(found.disagreement) / len(found.disagreement)
    assert wrong == pytest.approx(found.student.pixel_accuracy)  # pictures of one size
    assert seen == [(n, 4) for n in (1, 2, 3, 4)]


def test_data_of_fewer_classes_is_refused(measured, tmp_path) -> None:
    with pytest.raises(InputError, match="classes"):
        compare(measured.student.module, None, noise(tmp_path, classes=("only",)))


def test_label_maps_that_no_class_names_take_the_models_classes(measured, tmp_path) -> None:
    """Scores are those of evaluation there too."""
    noise(tmp_path)
    (tmp_path / "classes.txt").unlink()
    for path in (tmp_path / "annotations").rglob("*.png"):
        write_png(path, np.array(Image.open(path)).clip(max=1))
    data = open_dataset(tmp_path, "val")
    assert len(data.classes) == 2
    model = measured.student.module
    found = compare(model, measured.teacher.module, data)
    assert len(found.student.per_class) == 3
    assert found.student.to_json() == evaluate(model, data).to_json()
    assert found.student.void == evaluate(model, data).void
