"""Which task a command is about, and its data opened as the recipe and the model say."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynprune.data import Preprocessing, SegmentationData
from dynprune.data.text import load_tokenizer
from dynprune.errors import DynpruneError, InputError, UsageError
from dynprune.example import Example
from dynprune.host.modes import at_inference
from dynprune.models import LoadedModel, provenance_of
from dynprune.pipeline.pictures import PictureRules
from dynprune.recipe import Recipe
from dynprune.recipe.schema import Text
from dynprune.tasks.logits import logits_of
from dynprune.tasks.segmentation import Segmentation
from dynprune.tasks.task import Kind, Reading, Task, find_kind, kind_of, spread_over

__all__ = [
    "as_task",
    "choose_kind",
    "fitting_kind",
    "open_task",
    "predicting_kind",
    "reading_of",
    "task_calls",
    "tokenizer_of",
]

_LOG = logging.getLogger(__name__)


def choose_kind(recipe: Recipe | None, data: str) -> Kind:
    """Return the task of a command: the recipe's, else the one that the data's layout tells.

    Raises:
        InputError: if neither tells.
        UsageError: if the recipe reads text, and the data is something else.
    """
    said = _said(recipe)
    if said is not None:
        return kind_of(said)
    found = find_kind(data)
    if found.name == "text" and recipe is not None and recipe.data is not None:
        raise UsageError(
            f"recipe {recipe.name} reads pictures (it has a data section), and {data} holds text; "
            "give a recipe with a text section, such as minilm"
        )
    return found


def fitting_kind(kind: Kind, recipe: Recipe | None, loaded: LoadedModel) -> Kind:
    """Return the task, or features where the data is of classes and the model gives none.

    Args:
        kind: as `choose_kind` returned it.
        recipe: if it says the task, that stays.
        loaded: whose example is run.
    """
    if kind.name != "classification" or _said(recipe) is not None or _classifies(loaded):
        return kind
    return kind_of("features")


def predicting_kind(recipe: Recipe | None, inputs: Sequence[str], loaded: LoadedModel) -> Kind:
    """Return the task by which inputs that a user names one by one are predicted.

    It is the recipe's; else what the first input's name tells (``module:function``, ``.txt``); else
    what the model gives for a picture: a vector of logits, a map of them, or features.
    """
    said = _said(recipe)
    if said is not None:
        return kind_of(said)
    for name in ("any", "text"):
        kind = kind_of(name)
        if kind.recognises(inputs[0]):
            return kind
    if _classifies(loaded):
        return kind_of("classification")
    return kind_of("features" if _gives_tokens(loaded) else "segmentation")


def open_task(
    kind: Kind, data: str, split: str, reading: Reading, model: nn.Module | None = None
) -> Task:
    """Open one part of a data set, and bring it under the model's classes where there is a model.

    Raises:
        InputError: if it is not there, cannot be read, or does not fit the model.
    """
    task = kind.open(data, split, reading)
    return task if model is None else task.settled(model)


def reading_of(
    recipe: Recipe | None,
    rules: PictureRules | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    loaded: LoadedModel | None = None,
    teacher: LoadedModel | None = None,
) -> Reading:
    """Return how samples are read and batched, as plain values.

    Args:
        recipe: its ``data``, ``text`` and ``runtime`` are read.
        rules: how pictures and labels are read.
        preprocessing: how pictures are read, where there are no rules.
        loaded: the model, whose classes and tokenizer are taken.
        teacher: whose tokenizer is taken where the model has none.
    """
    values: dict[str, Any] = {}
    if recipe is not None:
        values |= {"batch_size": recipe.runtime.batch_size, "seed": recipe.runtime.seed}
        values |= {"tokens": (recipe.text or Text()).tokens}
    if recipe is not None and recipe.data is not None:
        data = recipe.data
        values |= {
            "crop": data.crop,
            "scale": data.scale,
            **({} if data.area is None else {"area": data.area}),
            "flip": data.flip,
            "photometric": data.photometric,
        }
    if rules is not None:
        values |= {"preprocessing": rules.preprocessing, "values": rules.values}
    elif preprocessing is not None:
        values |= {"preprocessing": preprocessing}
    if loaded is not None:
        values["classes"] = loaded.classes
        values["tokenizer"] = lambda: tokenizer_of(loaded, teacher)
    return Reading(**values)


def as_task(data: SegmentationData | Task, recipe: Recipe, preprocessing: Preprocessing) -> Task:
    """Return a task; a segmentation data set is read as a recipe says."""
    if isinstance(data, SegmentationData):
        return Segmentation(data, reading_of(recipe, preprocessing=preprocessing))
    return data


def task_calls(task: Task, count: int, *, device: str = "cpu") -> Iterator[Example]:
    """Yield up to ``count`` calls, evenly over a task's data, as calibration runs them."""
    for index in spread_over(len(task), count):
        yield task.call(index, device)


def tokenizer_of(loaded: LoadedModel, teacher: LoadedModel | None = None) -> Any:
    """Load the tokenizer that lies beside a model, beside what it was made from, or a teacher.

    Raises:
        InputError: if there is none.
    """
    places = [loaded.name]
    with contextlib.suppress(UsageError):  # nothing is known of it
        places.append(provenance_of(loaded.module).name)
    if teacher is not None:
        places.append(teacher.name)
    places.append(str(getattr(loaded.module, "name_or_path", "")))
    for place in dict.fromkeys(place for place in places if place):
        if not Path(place).is_dir() and ":" in place:
            continue
        try:
            return load_tokenizer(place)
        except InputError as error:
            _LOG.debug("%s", error)
    raise InputError(
        f"text needs the tokenizer of {loaded.name}, and there is none beside it; copy "
        "tokenizer.json and tokenizer_config.json of the dense model into its directory, or name "
        "the dense model with --teacher"
    )


def _said(recipe: Recipe | None) -> str | None:
    """Return the task that a recipe names; one with a text section reads text."""
    if recipe is None:
        return None
    if recipe.data is not None:
        return recipe.data.task
    return "text" if recipe.text is not None else None


def _classifies(loaded: LoadedModel) -> bool:
    found = _output_of(loaded)
    return found is not None and found.dim() == 2


def _gives_tokens(loaded: LoadedModel) -> bool:
    found = _output_of(loaded)
    return found is not None and found.dim() == 3


def _output_of(loaded: LoadedModel) -> torch.Tensor | None:
    """Return the logits, or the first tensor, that a model gives for its example."""
    with at_inference(loaded.module):
        try:
            return logits_of(loaded.example.run(loaded.module))
        except DynpruneError:
            return None
