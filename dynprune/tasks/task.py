"""What a task is: how data becomes calls and labels, and how well a model does with them.

A new task is one module beside this one, with a `Kind` named ``KIND``, and one name in `TASKS`.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor, nn

from dynprune.data import LabelValues, Preprocessing
from dynprune.data.folder_batches import FolderBatches, RandomCrop
from dynprune.data.folders import FolderData
from dynprune.errors import InputError, UsageError
from dynprune.example import Example
from dynprune.tasks.names import TASKS

__all__ = [
    "Exhibit",
    "Kind",
    "Prediction",
    "Progress",
    "Reading",
    "Samples",
    "Scores",
    "Task",
    "find_kind",
    "kind_of",
    "spread_over",
]

Progress = Callable[[int, int], None]
Samples = Callable[[int], tuple[Any, Tensor | None]]
"""From the step to the inputs and labels of its batch; pure, see `dynprune.distill.BatchSource`."""


@dataclass(frozen=True)
class Reading:
    """How samples are read and how they become batches: each task takes what it knows of it.

    Attributes:
        preprocessing: how a picture goes into the model.
        values: what the values in label maps mean.
        crop: height and width of a training picture, in pixels; the evaluated size where None.
        scale: bounds of the random resize before a crop of a label map's picture (factor).
        area: bounds of a random crop's share of a picture without a label map (fraction).
        flip: probability of a horizontal flip.
        photometric: whether colours vary in training.
        batch_size: samples of a step, over all processes.
        seed: of the order and of every augmentation.
        tokens: least and most tokens of a sentence.
        tokenizer: loads the model's tokenizer; None where it has none.
        classes: the model's own names of its classes, in index order; empty where it has none.
    """

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    values: LabelValues = field(default_factory=LabelValues)
    crop: tuple[int, int] | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    area: tuple[float, float] = (0.35, 1.0)
    flip: float = 0.5
    photometric: bool = True
    batch_size: int = 16
    seed: int = 0
    tokens: tuple[int, int] = (8, 64)
    tokenizer: Callable[[], Any] | None = None
    classes: tuple[str, ...] = ()

    def crops(self, data: FolderData) -> FolderBatches:
        """Return random crops of pictures without label maps, for every step.

        Where no size is said, crops have that of the first picture as it is evaluated.
        """
        size: Sequence[int] | None = self.crop or self.preprocessing.size
        if not size:
            size = self.preprocessing(data.picture(0), "cpu").shape[-2:]
        return FolderBatches(
            data,
            self.batch_size,
            self.seed,
            RandomCrop(tuple(size), self.area, self.flip, self.photometric),
            mean=self.preprocessing.mean,
            std=self.preprocessing.std,
        )


@dataclass(frozen=True)
class Scores:
    """How well a model does on one part of a data set.

    Attributes:
        samples: how many were scored.
        figures: name -> fraction; what a run records of a validation.
        words: name -> what a person reads; the name itself where it is absent.
        document: more that ``eval --json`` holds, such as a score for every class.
        columns: headings of ``rows``; ``>`` before one that is a number.
        rows: what the terminal shows besides.
        notes: sentences for the user.
    """

    samples: int
    figures: Mapping[str, float]
    words: Mapping[str, str] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self, unit: str) -> dict[str, Any]:
        """Return the JSON document of ``eval``: the number of samples under the task's own word."""
        return {unit: self.samples, **self.figures, **self.document}

    def line(self) -> str:
        """Say the figures in one line."""
        named = ((self.words.get(name, name), value) for name, value in self.figures.items())
        return "  ".join(f"{name} {value:.4f}" for name, value in named)


@dataclass(frozen=True)
class Exhibit:
    """What the report's page shows of one sample.

    Attributes:
        title: the sample's name, and what happened to it.
        views: who saw it -> a picture as a data URL.
        size: width and height of each view, in pixels.
        rows: who said it -> what, in words.
    """

    title: str
    views: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    rows: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Prediction:
    """What was found in one input, and where it was written.

    Attributes:
        input: what the user named.
        files: what each file is -> its path.
        found: plain values for the JSON document.
        words: the same for a person, in a few words.
    """

    input: str
    files: Mapping[str, Path]
    found: Mapping[str, Any]
    words: str


class Task(Protocol):
    """One part of a data set, and what a model is to do with it.

    Attributes:
        name: of the task, one of `TASKS`.
        unit: what a sample is called: ``images``, ``texts`` or ``calls``.
        metric: the figure by which the best checkpoint is chosen; more is better.
        compares: whether scores say how close a model is to its dense one, so that both are needed.
        ignore_index: label that counts for nothing.
    """

    name: str
    unit: str
    metric: str
    compares: bool
    ignore_index: int

    def __len__(self) -> int:
        """Return how many samples there are."""

    @property
    def names(self) -> Sequence[str]:
        """A name for every sample, such as its file's."""

    def settled(self, model: nn.Module) -> Self:
        """Return the data under the classes of a model, after one sample has run through it.

        Raises:
            InputError: where the model's output is not one of this task, or has other classes.
        """

    def call(self, index: int, device: str = "cpu") -> Example:
        """Return the call of one sample, as it is evaluated."""

    def samples(self) -> Samples:
        """Return the training batches: a pure function of the step."""

    def evaluate(
        self,
        model: nn.Module,
        dense: nn.Module | None = None,
        *,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Scores:
        """Score a model, beside its dense one where `compares`."""

    def exhibits(
        self, student: nn.Module, dense: nn.Module | None, *, count: int, device: str = "cpu"
    ) -> Sequence[Exhibit]:
        """Show a few samples, evenly over the data."""

    def shares(self) -> Sequence[float] | None:
        """Return each class its share of what is labelled; None where nothing has a class."""

    def fingerprint(self) -> Any:
        """Return plain values that tell this data from other data."""


@dataclass(frozen=True)
class Kind:
    """A task before its data is open.

    Attributes:
        name: one of `TASKS`.
        data: its layouts, in the words of an error message.
        recognises: whether ``--data`` names data of this task.
        check: refuses data that is not there, before a model is loaded for it: (data, split).
        open: opens one part: (data, split, reading).
        predict: runs the model over inputs that the user names and writes into a directory:
            (model, inputs, directory, reading, device). None where the task has no such form.
        pictures: whether inputs are pictures, whose preprocessing is told.
        brings_calls: whether the data itself shows how the model is called.
    """

    name: str
    data: str
    recognises: Callable[[str], bool]
    check: Callable[[str, str], None]
    open: Callable[[str, str, Reading], Task]
    predict: (
        Callable[[nn.Module, Sequence[str], Path, Reading, str], Iterator[Prediction]] | None
    ) = None
    pictures: bool = True
    brings_calls: bool = False


def kind_of(name: str) -> Kind:
    """Return a task's kind by its name.

    Raises:
        UsageError: there is no such task.
    """
    if name not in TASKS:
        raise UsageError(f"task {name!r} is not one of {', '.join(TASKS)}")
    kind = importlib.import_module(f"dynprune.tasks.{name}").KIND
    assert isinstance(kind, Kind)
    return kind


def find_kind(data: str) -> Kind:
    """Return the first task that recognises what ``--data`` names.

    Raises:
        InputError: none does.
    """
    kinds = [kind_of(name) for name in TASKS]
    for kind in kinds:
        if kind.recognises(data):
            return kind
    path = Path(data)
    if not path.is_dir():
        found = "it is a file" if path.exists() else "it does not exist"
        raise InputError(
            f"no data set at {data}: {found}; give the directory of a data set, a text file, or "
            "module:function"
        )
    layouts = "\n".join(f"  {kind.name}: {kind.data}" for kind in kinds)
    raise InputError(f"{data} follows no layout that is known; expected one of\n{layouts}")


def spread_over(total: int, count: int) -> Iterable[int]:
    """Yield up to ``count`` indices, evenly over ``total`` samples."""
    count = min(count, total)
    return (position * total // count for position in range(count))
