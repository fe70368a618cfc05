"""Segmentation as a task: a class for every pixel, scored by mean intersection over union."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from dynprune.data import (
    VOID,
    SegmentationData,
    TrainingBatches,
    class_shares,
    open_dataset,
)
from dynprune.data.layouts import find_layout
from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.tasks.evaluate import agree_on_classes, evaluate, output_classes
from dynprune.tasks.task import Exhibit, Kind, Progress, Reading, Samples, Scores

__all__ = ["KIND", "Segmentation"]

_SHOWN = 5  # names of a note


@dataclass(frozen=True)
class Segmentation:
    """Pictures with label maps.

    Attributes:
        data: the pictures and their label maps.
        reading: how they are read.
    """

    data: SegmentationData
    reading: Reading

    name = "segmentation"
    unit = "images"
    metric = "miou"
    compares = False
    ignore_index = VOID

    def __len__(self) -> int:
        return len(self.data)

    @property
    def names(self) -> Sequence[str]:
        """The pictures' paths."""
        return [str(path) for path in self.data.images]

    def settled(self, model: nn.Module) -> "Segmentation":
        """Return the data under the classes that a model tells apart; one picture is run."""
        weight = next(model.parameters(), None)  # a file for an engine has none
        device = "cpu" if weight is None else weight.device
        if self.reading.crop is None:
            first = self.reading.preprocessing(self.data.picture(0), device)
            count = output_classes(model, first, self.reading.preprocessing)
        else:
            crop = self._batches()[0][0][:1].to(device)
            count = output_classes(model, crop)
        return replace(self, data=agree_on_classes(self.data, count))

    def call(self, index: int, device: str = "cpu") -> Example:
        """Return the call of one picture, as it is evaluated."""
        return Example((self.reading.preprocessing(self.data.picture(index), device),))

    def samples(self) -> Samples:
        """Return the augmented crops of every step."""
        return self._batches()

    def _batches(self) -> TrainingBatches:
        reading = self.reading
        if reading.crop is None:
            raise UsageError("segmentation is trained on crops: give data.crop in the recipe")
        return TrainingBatches(
            self.data,
            reading.batch_size,
            reading.seed,
            reading.crop,
            reading.scale,
            flip=reading.flip,
            photometric=reading.photometric,
            mean=reading.preprocessing.mean,
            std=reading.preprocessing.std,
        )

    def evaluate(
        self,
        model: nn.Module,
        dense: nn.Module | None = None,  # noqa: ARG002 - scores are of the labels
        *,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Scores:
        """Score every picture, see :func:`~dynprune.tasks.evaluate.evaluate`."""
        found = evaluate(
            model, self.data, self.reading.preprocessing, device=device, progress=progress
        )
        notes = []
        if found.absent:
            more = ", ..." if len(found.absent) > _SHOWN else ""
            notes.append(
                f"{len(found.absent)} of {len(found.per_class)} classes are the label of no pixel, "
                f"so the mean leaves them out: {', '.join(found.absent[:_SHOWN])}{more}; "
                f"{found.void:.1%} of the pixels count for nothing "
                f"({self.reading.values.describe()})"
            )
        per_class = found.per_class.items()
        return Scores(
            found.images,
            {"miou": found.miou, "pixel_accuracy": found.pixel_accuracy},
            {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"},
            {"per_class": found.per_class},
            ("class", ">IoU"),
            tuple((name, "-" if iou is None else f"{iou:.4f}") for name, iou in per_class),
            tuple(notes),
        )

    def exhibits(
        self,
        student: nn.Module,  # noqa: ARG002 - the page has panels of its own for label maps
        dense: nn.Module | None,  # noqa: ARG002 - as above
        *,
        count: int,  # noqa: ARG002 - as above
        device: str = "cpu",  # noqa: ARG002 - as above
    ) -> Sequence[Exhibit]:
        """Return nothing: the page shows label maps by `dynprune.report.panels`."""
        return ()

    def shares(self) -> Sequence[float] | None:
        """Return each class its share of the labelled pixels."""
        return class_shares(self.data)

    def fingerprint(self) -> Any:
        """Return the data set's own."""
        return self.data.fingerprint()


def _open(data: str, split: str, reading: Reading) -> Segmentation:
    return Segmentation(open_dataset(data, split, values=reading.values), reading)


def _recognises(data: str) -> bool:
    root = Path(data)
    known = ("ADEChallengeData2016", "leftImg8bit", "images")
    return any((root / name).is_dir() for name in known)


def _check(data: str, split: str) -> None:
    find_layout(Path(data), split)


KIND = Kind(
    "segmentation",
    "images/SPLIT with annotations/SPLIT, ADEChallengeData2016, or leftImg8bit with gtFine",
    _recognises,
    _check,
    _open,
)
