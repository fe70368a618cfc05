"""A few pictures as the models see them: teacher, student, label, and where these differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynprune.data import VOID, Preprocessing, SegmentationData
from dynprune.tasks.predict import overlay, predict
from dynprune.tasks.views import data_url, shrink

__all__ = ["GAINED", "LOST", "MOVED", "Panel", "difference", "make_panels"]

GAINED = (86, 180, 233)  # colours of Okabe and Ito, told apart by colour-blind readers
LOST = (230, 97, 0)
MOVED = (240, 228, 66)


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        name: of its file.
        disagreement: share of its pixels on which the two models differ.
        views: what is seen -> JPEG as a data URL.
        size: width and height of each view, in pixels.
        classes: indices of the classes that occur in any view.
    """

    name: str
    disagreement: float
    views: Mapping[str, str]
    size: tuple[int, int]
    classes: tuple[int, ...]


def make_panels(
    student: nn.Module,
    teacher: nn.Module | None,
    data: SegmentationData,
    disagreement: Sequence[float],
    *,
    count: int,
    preprocessing: Preprocessing,
    device: str = "cpu",
) -> tuple[Panel, ...]:
    """Show pictures evenly over the order of disagreement: from the most to the least.

    Args:
        student: from pictures to logits.
        teacher: likewise, or None.
        data: pictures and labels.
        disagreement: of every picture.
        count: pictures to show.
        preprocessing: how pictures go into both models.
        device: where the models are.
    """
    order = sorted(range(len(data)), key=lambda index: -disagreement[index])
    count = min(count, len(order))
    chosen = [order[i * (len(order) - 1) // max(1, count - 1)] for i in range(count)]
    panels = []
    for index in chosen:
        image, label = data.load(index)
        name = data.images[index].name
        seen = {}
        if teacher is not None:
            seen["teacher"] = predict(teacher, image, preprocessing, device=device, name=name)
        seen["student"] = predict(student, image, preprocessing, device=device, name=name)
        seen["label"] = label
        views = {who: shrink(_coloured(image, labels)) for who, labels in seen.items()}
        apart = difference(image, seen["student"], seen.get("teacher", label), label)
        views["disagreement"] = shrink(apart)
        classes = torch.cat([labels.flatten() for labels in seen.values()]).unique().tolist()
        panels.append(
            Panel(
                name,
                disagreement[index],
                {who: data_url(view) for who, view in views.items()},
                (views["label"].shape[2], views["label"].shape[1]),
                tuple(number for number in classes if number != VOID),
            )
        )
    return tuple(panels)


def difference(image: Tensor, student: Tensor, other: Tensor, label: Tensor) -> Tensor:
    """Paint where a student's label map differs from another one, over a grey picture.

    Args:
        image: the picture.
        student: its label map by the student.
        other: by the teacher, or the label itself.
        label: the truth; void pixels stay grey.

    Shape:
        uint8 ``(3, H, W)`` and three times ``(H, W)`` in, uint8 ``(3, H, W)`` out: `GAINED` where
        the student alone is right, `LOST` where the other is, `MOVED` where neither is.
    """
    grey = image.float().mean(0, keepdim=True).expand(3, -1, -1) * 0.5 + 64
    painted = grey.round().to(torch.uint8)
    differs = (student != other) & (label != VOID)
    right, other_right = student == label, other == label
    for colour, where in (
        (GAINED, differs & right),
        (LOST, differs & other_right),
        (MOVED, differs & ~right & ~other_right),
    ):
        painted = torch.where(
            where, torch.tensor(colour, dtype=torch.uint8)[:, None, None], painted
        )
    return painted


def _coloured(image: Tensor, labels: Tensor) -> Tensor:
    """Lay a label map over its picture; void pixels show the picture."""
    return torch.where(labels == VOID, image, overlay(image, labels))
