"""Mean intersection over union of a model on a data set, from one confusion matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.data import IMAGENET_MEAN, IMAGENET_STD, VOID, SegmentationData, normalise
from dynprune.errors import DynpruneError, InputError
from dynprune.host.modes import evaluating
from dynprune.tasks.logits import label_map, logits_of, window_logits

__all__ = ["Evaluation", "evaluate", "logits_of", "predict_logits", "score"]

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
    """

    images: int
    miou: float
    pixel_accuracy: float
    per_class: dict[str, float | None]
    confusion: Tensor

    def to_json(self) -> dict[str, Any]:
        """Give the scores as plain values, without the matrix."""
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
            f"no pixel of {images} pictures has a label (all are void, {VOID}): nothing to score"
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
    *,
    device: torch.device | str = "cpu",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    window: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score ``model`` on every picture of ``data``, one at a time and at full size.

    Logits are resized bilinearly to the label's size before the largest is taken; label 255
    counts for nothing. The model runs in evaluation mode and is left in the modes it came in.

    Args:
        model: from pictures ``(1, 3, H, W)`` to logits, see
            :func:`~dynprune.tasks.logits.logits_of`.
        data: the pictures and their label maps.
        device: where the model is.
        mean: of the model's input, see :func:`~dynprune.data.normalise`.
        std: likewise.
        window: height and width of sliding windows, in pixels; ``None`` takes the whole picture.
        stride: rows and columns between windows; two thirds of the window by default.
        progress: called with the number of pictures done and of all pictures.

    Raises:
        InputError: if a sample cannot be read, or the model's classes are not the data's.
    """
    from torchmetrics.classification import MulticlassConfusionMatrix

    confusion = MulticlassConfusionMatrix(
        len(data.classes), ignore_index=VOID, validate_args=False
    ).to(device)
    with evaluating(model):
        for index in range(len(data)):
            image, label = data.load(index)
            images = normalise(image[None].to(device), mean, std)
            logits = predict_logits(model, images, window, stride, name=str(data.images[index]))
            if logits.shape[1] != len(data.classes):
                raise InputError(
                    f"the model gives logits of {logits.shape[1]} classes, but {data.root} has "
                    f"{len(data.classes)} ({data.classes[0]} to {data.classes[-1]}); "
                    "evaluate on the data that the model was trained for"
                )
            confusion.update(label_map(logits, label.shape), label[None].long().to(device))
            if progress is not None:
                progress(index + 1, len(data))
    return score(confusion.compute().long(), data.classes, len(data))


def predict_logits(
    model: nn.Module,
    images: Tensor,
    window: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    *,
    name: str = "the picture",
) -> Tensor:
    """Run ``model`` on whole pictures, or window by window.

    Args:
        model: from pictures to logits.
        images: normalised pictures ``(B, 3, H, W)``.
        window: height and width of sliding windows, in pixels.
        stride: rows and columns between windows; two thirds of the window by default.
        name: of the picture, for messages.

    Raises:
        InputError: if the output is not one map of logits a picture, or the picture is smaller
            than the model can take.
    """
    height, width = images.shape[-2:]
    try:
        if window is None:
            logits = logits_of(model(images))
        else:
            step = stride if stride is not None else [max(1, side * 2 // 3) for side in window]
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
