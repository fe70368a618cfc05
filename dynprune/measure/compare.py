"""Two models on the same pictures: how well each labels them, and where they differ."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dynprune.data import VOID, Preprocessing, SegmentationData
from dynprune.tasks.evaluate import Evaluation, agree_on_classes, output_classes, score
from dynprune.tasks.predict import predict

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """How a student labels a data set, beside its teacher.

    Attributes:
        student: its scores.
        teacher: its scores; None where there is no teacher.
        disagreement: of every picture, the share of its pixels on which student and teacher
            differ; student and label where there is no teacher.
    """

    student: Evaluation
    teacher: Evaluation | None
    disagreement: tuple[float, ...]

    @property
    def change(self) -> float | None:
        """Student's mIoU minus the teacher's, a fraction."""
        return None if self.teacher is None else self.student.miou - self.teacher.miou


def compare(
    student: nn.Module,
    teacher: nn.Module | None,
    data: SegmentationData,
    preprocessing: Preprocessing | None = None,
    *,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Label every picture by both models; their scores are those of `dynprune.tasks.evaluate`.

    Args:
        student: from pictures to logits.
        teacher: likewise, or None.
        data: pictures and labels.
        preprocessing: how pictures go into both models.
        device: where the models are.
        progress: called with the number of pictures done and of all pictures.

    Raises:
        InputError: if a sample cannot be read, or a model's classes are not the data's.
    """
    models = [student] if teacher is None else [student, teacher]
    preprocessing = preprocessing or Preprocessing()
    for model in models:
        first = preprocessing(data.picture(0), device)
        data = agree_on_classes(data, output_classes(model, first, preprocessing))
    confusions = [torch.zeros(0)] * len(models)
    disagreement = []
    void = pixels = 0
    for index in range(len(data)):
        image, label = data.load(index)
        seen = []
        for number, model in enumerate(models):
            name = str(data.images[index])
            found = predict(model, image, preprocessing, device=device, name=name)
            counted = _confusion(found, label, len(data.classes))
            confusions[number] = counted if index == 0 else confusions[number] + counted
            seen.append(found)
        other = label if teacher is None else seen[1]
        known = label != VOID
        void, pixels = void + int((~known).sum()), pixels + label.numel()
        differs = (seen[0] != other) & known
        disagreement.append(float(differs.sum() / known.sum().clamp_min(1)))
        if progress is not None:
            progress(index + 1, len(data))
    scores = [
        replace(score(confusion, data.classes, len(data)), void=void / pixels)
        for confusion in confusions
    ]
    return Comparison(scores[0], scores[1] if teacher is not None else None, tuple(disagreement))


def _confusion(found: Tensor, label: Tensor, classes: int) -> Tensor:
    """Count pixels, row the truth, column the prediction: int64 (classes, classes)."""
    known = label != VOID
    pairs = label[known].long() * classes + found[known].long()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
