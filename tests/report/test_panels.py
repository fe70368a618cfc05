"""Pictures show what the models see, and the difference in the colours of the legend."""

import base64
import io

import pytest
import torch
from PIL import Image

from dynprune.report.panels import GAINED, LOST, MOVED, difference, make_panels
from dynprune.tasks import views

from .conftest import PICTURES


def test_a_difference_is_painted_by_who_is_right() -> None:
    image = torch.full((3, 1, 5), 100, dtype=torch.uint8)
    label = torch.tensor([[0, 0, 0, 0, 255]], dtype=torch.uint8)
    other = torch.tensor([[0, 1, 0, 1, 1]], dtype=torch.uint8)
    student = torch.tensor([[0, 0, 1, 2, 2]], dtype=torch.uint8)
    painted = [tuple(pixel) for pixel in difference(image, student, other, label)[:, 0].T.tolist()]
    grey = (114, 114, 114)
    assert painted == [grey, GAINED, LOST, MOVED, grey]  # the last is void


def test_pictures_go_from_the_most_to_the_least_disagreement(measured) -> None:
    shares = [0.1, 0.4, 0.2, 0.3]
    models = (measured.student.module, measured.teacher.module)
    made = make_panels(*models, measured.data, shares, count=3, preprocessing=PICTURES)
    assert [panel.disagreement for panel in made] == [0.4, 0.3, 0.1]
    assert [panel.name for panel in made] == ["dark_1.png", "light_1.png", "dark_0.png"]
    assert make_panels(*models, measured.data, shares, count=0, preprocessing=PICTURES) == ()
    one = make_panels(*models, measured.data, shares, count=1, preprocessing=PICTURES)
    assert [panel.disagreement for panel in one] == [0.4]


@pytest.mark.parametrize("teacher", [True, False])
def test_every_view_is_a_small_jpeg_of_the_pictures_shape(measured, teacher, monkeypatch) -> None:
    monkeypatch.setattr(views, "WIDTH", 16)
    dense = measured.teacher.module if teacher else None
    (panel,) = make_panels(
        measured.student.module, dense, measured.data, [0.0] * 4, count=1, preprocessing=PICTURES
    )
    wanted = ["teacher"] * teacher + ["student", "label", "disagreement"]
    assert list(panel.views) == wanted
    assert panel.size == (16, 16)
    for view in panel.views.values():
        head, _, data = view.partition(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (16, 16)
    assert set(panel.classes) <= {0, 1, 2}  # void is no class
