"""What an int8 file is calibrated on and judged by, and what a file says of itself."""

from collections.abc import Sequence
from pathlib import Path

from dynprune.data import Preprocessing, SegmentationData
from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.export.engine_file import as_module
from dynprune.export.facts import FileFacts
from dynprune.export.int8 import Calibration
from dynprune.models import LoadedModel
from dynprune.pipeline.pictures import PictureRules
from dynprune.tasks.evaluate import evaluate

__all__ = ["calibration_on", "facts_of", "rules_of"]

IMAGES = 32
"""Pictures that calibrate a file where neither a recipe nor the user says how many."""


def facts_of(loaded: LoadedModel, rules: PictureRules) -> FileFacts:
    """Return what a file of a model says of itself."""
    return FileFacts(loaded.classes, rules.preprocessing, rules.values, loaded.processor)


def rules_of(facts: FileFacts) -> PictureRules:
    """Return how pictures and labels are read for a file, as it says itself."""
    return PictureRules(facts.preprocessing, facts.values, facts.processor is not None, (), ())


def calibration_on(
    loaded: LoadedModel,
    data: SegmentationData,
    preprocessing: Preprocessing,
    *,
    images: int = IMAGES,
    most_lost: float | None = None,
    threads: int = 0,
) -> Calibration:
    """Return what an int8 file is made with: pictures evenly over the data, as gates start from.

    Args:
        loaded: the model, of pictures.
        data: the pictures.
        preprocessing: how they go in.
        images: how many calibrate; as many others judge.
        most_lost: mIoU that int8 may cost, through the engine, on pictures of the same data that
            do not calibrate; None measures nothing.
        threads: of one inference.

    Raises:
        UsageError: the model does not take pictures.
    """
    if not any(t.dim() == 4 and t.is_floating_point() for t in loaded.example.tensors):
        raise UsageError(
            f"{loaded.name} does not take pictures, and int8 is calibrated on the pictures of "
            "--data; ask for another --precision"
        )
    chosen = evenly(len(data), images)
    calls = [Example((preprocessing(data.picture(index)),)) for index in chosen]
    if most_lost is None:
        return Calibration(calls)
    taken = set(chosen)
    rest = [index for index in range(len(data)) if index not in taken] or chosen
    held_back = data.subset([rest[place] for place in evenly(len(rest), images)])

    def score(path: Path) -> float:
        return evaluate(as_module(path, threads=threads), held_back, preprocessing).miou

    return Calibration(calls, score, most_lost)


def evenly(total: int, count: int) -> Sequence[int]:
    """Return ``count`` positions, or all, spread evenly over ``total``."""
    count = min(count, total)
    return [position * total // count for position in range(count)]
