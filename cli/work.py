"""What a command works on: a model, a task, and parts of a data set under the model's classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynprune.errors import UsageError
from dynprune.recipe import Recipe

from .subject import load_engine_file, load_subject, picture_rules, tell_classes

if TYPE_CHECKING:
    from dynprune.data import SegmentationData
    from dynprune.models import LoadedModel
    from dynprune.pipeline.pictures import PictureRules
    from dynprune.tasks.task import Kind, Reading, Task

    from .terminal import Terminal

__all__ = ["Work", "keep_beside", "load_for", "open_work", "reading_for", "require_teacher"]


@dataclass(frozen=True)
class Work:
    """A model with data.

    Attributes:
        kind: the task.
        loaded: the model.
        teacher: the dense model to compare with; None where none was named.
        parts: the data, a part a split that was asked for.
        rules: how pictures and labels are read; None where they are no pictures.
        reading: the same and more, as plain values.
    """

    kind: "Kind"
    loaded: "LoadedModel"
    teacher: "LoadedModel | None"
    parts: "tuple[Task, ...]"
    rules: "PictureRules | None"
    reading: "Reading"

    @property
    def read(self) -> dict[str, Any]:
        """How the data was read, for the JSON document."""
        return {"preprocessing": None if self.rules is None else self.rules.to_json()}

    @property
    def pictures(self) -> "SegmentationData":
        """The first part's pictures with label maps, where the task is segmentation."""
        from dynprune.tasks.segmentation import Segmentation

        (first, *_) = self.parts
        assert isinstance(first, Segmentation)
        return first.data


def open_work(
    data: str,
    splits: Sequence[str],
    model: str | None,
    recipe: Recipe | None,
    terminal: "Terminal",
    *,
    device: str = "cpu",
    teacher: str | None = None,
    settle: bool = True,
    **loading: Any,
) -> Work:
    """Find the task, load the model, and open the data under it.

    Data that is not there is refused before a model is loaded for it; a function that yields calls
    is called first, since its first call shows how the model is called.

    Args:
        data: what the user named with ``--data``.
        splits: parts to open.
        model: MODEL; None for the recipe's own.
        recipe: what the command follows, or None.
        terminal: takes notes.
        device: where models go.
        teacher: the dense model, where the user named one.
        settle: run a sample, to bring the data under the model's classes.
        loading: more for `load_subject`.

    Raises:
        InputError: data or a model is missing, or they do not fit each other.
    """
    from dynprune.pipeline import tasks

    kind = tasks.choose_kind(recipe, data)
    for split in splits:
        kind.check(data, split)
    opened: list[Task] = []
    example = None
    if kind.brings_calls:
        reading = tasks.reading_of(recipe)
        opened = [tasks.open_task(kind, data, split, reading) for split in splits]
        example = opened[0].call(0)
    loaded, rules = _loaded(kind, model, recipe, terminal, device, example=example, **loading)
    dense = None
    if teacher is not None:
        dense = load_subject(teacher, recipe, device=device, example=example)
    kind = tasks.fitting_kind(kind, recipe, loaded)
    if rules is None:
        rules, reading = reading_for(kind, loaded, recipe, terminal, teacher=dense)
    else:
        reading = tasks.reading_of(recipe, rules, loaded=loaded, teacher=dense)
    if not opened:
        opened = [tasks.open_task(kind, data, split, reading) for split in splits]
    if kind.name == "segmentation":
        _tell_names(opened[0], loaded, terminal)
    if settle:
        opened = [part.settled(loaded.module) for part in opened]
    return Work(kind, loaded, dense, tuple(opened), rules, reading)


def _loaded(
    kind: "Kind",
    model: str | None,
    recipe: Recipe | None,
    terminal: "Terminal",
    device: str,
    **loading: Any,
) -> "tuple[LoadedModel, PictureRules | None]":
    """Load the model, or a file for an engine with what it says of pictures and labels."""
    from dynprune.export.engine_file import is_engine_file

    if model is None or not is_engine_file(model):
        return load_subject(model, recipe, device=device, **loading), None
    if kind.name != "segmentation":
        raise UsageError(
            f"{model} is a file for an engine, which labels pictures; it does not run on "
            f"{kind.name} data. Evaluate the directory that it was exported from."
        )
    return load_engine_file(model, recipe, terminal, device=device, threads=loading.get("threads"))


def _rules(
    kind: "Kind", loaded: "LoadedModel", recipe: Recipe | None, terminal: "Terminal"
) -> "PictureRules | None":
    if not kind.pictures:
        return None
    if kind.name == "segmentation":
        return picture_rules(loaded, recipe, terminal)
    from dynprune.pipeline.pictures import whole_picture_rules

    rules = whole_picture_rules(recipe, loaded)
    for note in rules.notes:
        terminal.note(note)
    return rules


def reading_for(
    kind: "Kind",
    loaded: "LoadedModel",
    recipe: Recipe | None,
    terminal: "Terminal",
    *,
    teacher: "LoadedModel | None" = None,
) -> "tuple[PictureRules | None, Reading]":
    """Settle how a task's samples go into a model, and tell the user what decides it."""
    from dynprune.pipeline.tasks import reading_of

    rules = _rules(kind, loaded, recipe, terminal)
    return rules, reading_of(recipe, rules, loaded=loaded, teacher=teacher)


def load_for(
    inputs: Sequence[str], model: str, recipe: Recipe | None, *, device: str
) -> "LoadedModel":
    """Load the model for inputs that the user names; a function shows how the model is called."""
    from dynprune.data.calls import is_function, open_calls

    example = None
    if is_function(inputs[0]) and not Path(inputs[0]).exists():
        example = open_calls(inputs[0], None).calls[0]
    return load_subject(model, recipe, device=device, example=example)


def keep_beside(work: Work, directory: Path) -> None:
    """Write the tokenizer beside a model that reads text, so that it can be used by itself."""
    if work.kind.name == "text" and work.reading.tokenizer is not None:
        work.reading.tokenizer().save_pretrained(directory)


def _tell_names(part: "Task", loaded: "LoadedModel", terminal: "Terminal") -> None:
    """Warn where model and label maps name classes otherwise."""
    from dynprune.tasks.segmentation import Segmentation

    assert isinstance(part, Segmentation)
    if not part.data.numbered:
        tell_classes(loaded, part.data.classes, terminal)


def require_teacher(work: Work, terminal_name: str) -> "LoadedModel":
    """Return the dense model that scores compare with.

    Raises:
        UsageError: none was named.
    """
    if work.teacher is not None:
        return work.teacher
    raise UsageError(
        f"{terminal_name}: {work.kind.name} has no labels, so that scores say how close a model is "
        f"to its dense one; add --teacher MODEL"
    )
