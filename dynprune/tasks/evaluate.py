"""Mean intersection over union of a model on a data set, from one confusion matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.data import (
    VOID,
    Preprocessing,
    SegmentationData,
    check_masks,
    numbered_classes,
)
from dynprune.errors import DynpruneError, InputError
from dynprune.host.modes import evaluating
from dynprune.tasks.logits import label_map, logits_of, window_logits

__all__ = [
    "Evaluation",
    "agree_on_classes",
    "evaluate",
    "logits_of",
    "output_classes",
    "predict_logits",
    "score",
]

_SMALL = 64  # a picture with a side under twice the stride of the deepest usual stage


@dataclass(frozen=True)
class Evaluation:
    """How well label maps agree with the truth, as fractions.

    Attributes:
        images: number of pictures.
        miou: mean over the classes that occur in the labels.
        pixel_accuracy: share of the labelled pixels that are right.
        per_class: intersection over union of every class; ``None`` where it never occurs in the
            labels.
        confusion: int64 ``(classes, classes)`` pixels, row the truth, column the prediction.
        void: share of all pixels that count for nothing.
    """

    images: int
    miou: float
    pixel_accuracy: float
    per_class: dict[str, float | None]
    confusion: Tensor
    void: float = 0.0

    @property
    def absent(self) -> tuple[str, ...]:
        """The classes that no pixel is labelled with, so that the mean leaves them out."""
        return tuple(name for name, iou in self.per_class.items() if iou is None)

    def to_json(self) -> dict[str, Any]:
        """Return the scores as plain values, without the matrix."""
        return {
            "images": self.images,
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "per_class": self.per_class,
        }


def score(confusion: Tensor, classes: Sequence[str], images: int) -> Evaluation:
    r"""Score a confusion matrix.

    .. math:: IoU_c = \frac{n_{cc}}{\sum_j n_{cj} + \sum_i n_{ic} - n_{cc}}

    Args:
        confusion: pixels, row the truth, column the prediction.
        classes: names in index order.
        images: number of pictures that were counted.

    Raises:
        InputError: if no pixel is labelled.
    """
    counts = confusion.double()
    right, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    if not truth.any():
        raise InputError(
            f"no pixel of {images} pictures has a label (all are void: {VOID}, or what "
            "data.ignore_index says): nothing to score"
        )
    iou = right / (truth + predicted - right)
    occurs = truth > 0
    per_class = {
        name: float(value) if present else None
        for name, value, present in zip(classes, iou, occurs, strict=True)
    }
    accuracy = right.sum() / truth.sum()
    return Evaluation(
        images, float(iou[occurs].mean()), float(accuracy), per_class, confusion.cpu()
    )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: SegmentationData,
    preprocessing: Preprocessing | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score ``model`` on every picture of ``data``, one at a time.

    Logits are resized bilinearly to the label's size before the largest is taken; void pixels
    count for nothing. The model runs in evaluation mode and is left in the modes it came in.

    Args:
        model: from pictures ``(1, 3, H, W)`` to logits, see
            :func:`~dynprune.tasks.logits.logits_of`.
        data: the pictures and their label maps.
        preprocessing: how pictures go in; at full size, with ImageNet's mean and standard
            deviation, by default.
        device: where the model is.
        progress: called with the number of pictures done and of all pictures.

    Raises:
        InputError: if a sample cannot be read, the model's classes are not the data's, or the
            label maps are masks of 0 and 255.
    """
    from torchmetrics.classification import MulticlassConfusionMatrix

    preprocessing = preprocessing or Preprocessing()
    confusion: MulticlassConfusionMatrix | None = None
    void = pixels = 0
    with evaluating(model):
        for index in range(len(data)):
            image, name = data.picture(index), str(data.images[index])
            logits = predict_logits(model, preprocessing(image, device), preprocessing, name=name)
            if confusion is None:
                data = agree_on_classes(data, logits.shape[1])
                confusion = MulticlassConfusionMatrix(
                    logits.shape[1], ignore_index=VOID, validate_args=False
                ).to(device)
            label = data.load(index)[1]
            confusion.update(label_map(logits, label.shape), label[None].long().to(device))
            void, pixels = void + int((label == VOID).sum()), pixels + label.numel()
            if progress is not None:
                progress(index + 1, len(data))
    assert confusion is not None
    found = score(confusion.compute().long(), data.classes, len(data))
    return replace(found, void=void / pixels)


@torch.no_grad()
def output_classes(
    model: nn.Module, images: Tensor, preprocessing: Preprocessing | None = None
) -> int:
    """Return the number of classes that a model tells apart, by its logits of some pictures.

    Args:
        model: from pictures to logits.
        images: normalised pictures ``(B, 3, H, W)``, where the model is.
        preprocessing: whose windows count.

    Raises:
        InputError: if the output is no map of logits.
    """
    with evaluating(model):
        return predict_logits(model, images, preprocessing).shape[1]


def agree_on_classes(data: SegmentationData, count: int) -> SegmentationData:
    """Return ``data`` under as many classes as a model tells apart, and check its label maps.

    Names that the data set has must be as many. Where nothing names them, the classes are those
    of the model: a split need not show every one.

    Args:
        data: the pictures and their label maps.
        count: classes of the model's logits.

    Raises:
        InputError: if the data set names another number of classes, or holds masks of 0 and 255.
    """
    if data.numbered and len(data.classes) != count:
        too_many = len(data.classes) > count
        data = data.with_classes(numbered_classes(count))
        for index in range(len(data) if too_many else 0):
            data.load(index)  # one of them holds the value, and says so
    if len(data.classes) != count:
        advice = "evaluate on the data that the model was trained for"
        if data.values.reduce and len(data.classes) == count + 1:
            advice = (
                "label 0 is void and the others lose one, so leave the first name out of the "
                "list of classes, or say data.reduce_labels: false in a recipe"
            )
        raise InputError(
            f"the model gives logits of {count} classes, but {data.root} has "
            f"{len(data.classes)} ({data.classes[0]} to {data.classes[-1]}); {advice}"
        )
    check_masks(data)
    return data


def predict_logits(
    model: nn.Module,
    images: Tensor,
    preprocessing: Preprocessing | None = None,
    *,
    name: str = "the picture",
) -> Tensor:
    """Run ``model`` on whole pictures, or window by window.

    Args:
        model: from pictures to logits.
        images: normalised pictures ``(B, 3, H, W)``.
        preprocessing: whose windows count.
        name: of the picture, for messages.

    Raises:
        InputError: if the output is not one map of logits a picture, or the picture is smaller
            than the model can take.
    """
    height, width = images.shape[-2:]
    window = None if preprocessing is None else preprocessing.window
    try:
        if preprocessing is None or window is None:
            logits = logits_of(model(images))
        else:
            step = preprocessing.stride or [max(1, side * 2 // 3) for side in window]
            logits = window_logits(model, images, window, step)
    except RuntimeError as error:
        if isinstance(error, DynpruneError) or min(height, width) >= _SMALL:
            raise
        raise InputError(
            f"{name} is {width}x{height}, which the model cannot take ({error}); enlarge it"
        ) from error
    if logits.dim() != 4 or logits.shape[0] != images.shape[0]:
        raise InputError(
            f"the model's output has the shape {tuple(logits.shape)}, but segmentation needs "
            f"logits ({images.shape[0]}, classes, H, W); is it a segmentation model?"
        )
    return logits
