"""From a gated student to a trained one that is written at the end."""

import copy
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from dynprune.data import SegmentationData, TrainingBatches, inverse_root_weights
from dynprune.distill import TrainingPlan, is_first_process
from dynprune.distill.metrics_log import Record, last_scores
from dynprune.distill.trainer import train
from dynprune.errors import DynpruneError, OutputError, RecipeError, UsageError
from dynprune.models import LoadedModel
from dynprune.models.storage import write_model
from dynprune.pipeline.arguments import (
    batch_arguments,
    training_arguments,
)
from dynprune.pipeline.pictures import preprocessing_of, processor_of
from dynprune.pipeline.tasks import as_task
from dynprune.recipe import Recipe
from dynprune.rewrite import rewrite
from dynprune.tasks.evaluate import agree_on_classes, output_classes
from dynprune.tasks.task import Task

__all__ = ["distill", "learn", "make_teacher", "settle_classes"]


def make_teacher(loaded: LoadedModel, rewrites: Sequence[str]) -> nn.Module:
    """Return a frozen copy of a dense model in its rewritten, cheaper form."""
    teacher = copy.deepcopy(loaded.module)
    rewrite(teacher, loaded.example, rewrites)
    return teacher.eval().requires_grad_(False)


def settle_classes(
    model: nn.Module, recipe: Recipe, *parts: SegmentationData
) -> tuple[SegmentationData, ...]:
    """Return parts of a data set under the classes that a model tells apart.

    Args:
        model: from pictures to logits.
        recipe: whose batches are run, to see how many classes there are.
        parts: of the data set; the model sees a crop of the first.

    Raises:
        InputError: if the data set names other classes, or its label maps are masks of 0 and 255.
    """
    batches = TrainingBatches(parts[0], **batch_arguments(recipe))
    crop = batches[0][0][:1].to(next(model.parameters()).device)
    count = output_classes(model, crop)
    return tuple(agree_on_classes(part, count) for part in parts)


def learn(
    student: nn.Module,
    teacher: nn.Module | None,
    recipe: Recipe,
    *,
    training: SegmentationData | Task,
    validation: SegmentationData | Task | None = None,
    output: Path | None = None,
    resume: bool = False,
    only: str | None = None,
    device: str | None = None,
) -> Iterator[Record]:
    """Train any student by the recipe's stages, in place; a dense one too.

    Args:
        student: the model that learns.
        teacher: as `make_teacher` returned it; None where no loss needs one.
        recipe: its training sections are carried out.
        training: pictures, or any task's data, that are learnt from.
        validation: likewise, that the run is judged by; none where None.
        output: directory of the checkpoints and the records; None writes nothing.
        resume: continue from the latest checkpoint in ``output``.
        only: the one stage to run.
        device: where to train; accelerate's choice where None.

    Yields:
        The records of `dynprune.distill.train`.
    """
    preprocessing = preprocessing_of(recipe, processor_of(student))
    given = as_task(training, recipe, preprocessing)
    if recipe.stages and given.name == "segmentation":
        batch_arguments(recipe)  # refuses a recipe without a crop in the recipe's own words
    scored = None if validation is None else as_task(validation, recipe, preprocessing)
    if scored is not None:
        given, scored = given.settled(student), scored.settled(student)
        if scored.compares and teacher is None:
            raise UsageError(
                f"a validation of the task {scored.name} compares with the teacher, and none was "
                "given"
            )

    def validate(model: nn.Module) -> dict[str, float]:
        assert scored is not None
        where = str(next(model.parameters()).device)
        return dict(scored.evaluate(model, teacher, device=where).figures)

    facts: dict[str, Any] = {"recipe": _described(recipe), "data": given.fingerprint()}
    if processor_of(student) is not None and given.unit == "images":
        reading = getattr(given, "reading", None)
        used = preprocessing if reading is None else reading.preprocessing
        facts["pictures"] = used.to_json()
    arguments = training_arguments(recipe, device=device)
    arguments["reporting"] = replace(arguments["reporting"], metric=given.metric)
    arguments["ignore_index"] = given.ignore_index
    yield from train(
        student,
        teacher,
        given.samples(),
        TrainingPlan(**arguments, class_weights=_class_weights(recipe, given), facts=facts),
        validate=None if scored is None else validate,
        output=output,
        resume=resume,
        only=only,
    )


def _described(recipe: Recipe) -> dict[str, Any]:
    """Return what of a recipe decides about the weights."""
    return {k: v for k, v in recipe.to_data().items() if k not in ("runtime", "description")}


def _class_weights(recipe: Recipe, training: Task) -> tuple[float, ...] | None:
    """Return the weight of each class in `ce`, as the recipe asks for it.

    Raises:
        RecipeError: if there are other classes than weights, or none at all.
    """
    weights = None if recipe.data is None else recipe.data.class_weights
    if weights is None:
        return None
    shares = training.shares()
    if shares is None:
        raise RecipeError(
            f"data.class_weights weighs classes, and data of the task {training.name} has none"
        )
    found = tuple(inverse_root_weights(shares)) if weights == "inverse-root" else weights
    if len(found) != len(shares):
        raise RecipeError(
            f"data.class_weights holds {len(found)} weights, but there are {len(shares)} classes"
        )
    return found


def distill(
    student: nn.Module,
    teacher: nn.Module,
    recipe: Recipe,
    *,
    training: SegmentationData | Task,
    validation: SegmentationData | Task,
    output: Path,
    resume: bool = False,
    only: str | None = None,
    device: str | None = None,
) -> Iterator[Record]:
    """Train a gated student by the recipe's stages, and write it at the end; see `learn`."""
    yield from learn(
        student,
        teacher,
        recipe,
        training=training,
        validation=validation,
        output=output,
        resume=resume,
        only=only,
        device=device,
    )
    if is_first_process():
        scores, steps = last_scores(output)
        write_into(student, output, scores=scores, steps=steps)


def write_into(
    model: nn.Module,
    directory: Path,
    *,
    scores: Mapping[str, float] | None = None,
    steps: int | None = None,
) -> None:
    """Write a model's files into a directory that holds other things, each file at one stroke."""
    beside = directory / ".model.tmp"
    try:
        shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed here
        beside.mkdir()
        write_model(model, beside, scores=scores, steps=steps)
        for path in sorted(beside.iterdir()):
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
            path.replace(directory / path.name)
    except (OSError, SafetensorError) as error:
        if isinstance(error, DynpruneError):
            raise
        raise OutputError(f"cannot write the model into {directory}: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
