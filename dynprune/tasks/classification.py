"""Classification as a task: one class a picture, from folders of pictures; top-1 and top-5."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynprune.data import read_picture
from dynprune.data.folders import FolderData, is_image_folder, open_image_folder
from dynprune.errors import DynpruneError, InputError
from dynprune.example import Example
from dynprune.files import write_file
from dynprune.host.modes import evaluating
from dynprune.tasks.logits import logits_of
from dynprune.tasks.task import (
    Exhibit,
    Kind,
    Prediction,
    Progress,
    Reading,
    Samples,
    Scores,
    spread_over,
)
from dynprune.tasks.views import picture_view

__all__ = ["KIND", "Classification", "class_logits"]

_TOP = 5
_TOGETHER = 16  # pictures of one size that are run in one call


@dataclass(frozen=True)
class Classification:
    """Pictures with a class each.

    Attributes:
        data: the pictures and the index of each one's folder.
        reading: how they are read.
        indices: the model's class of every folder; empty before `settled`.
        names_of_classes: of every class of the model.
    """

    data: FolderData
    reading: Reading
    indices: tuple[int, ...] = ()
    names_of_classes: tuple[str, ...] = ()

    name = "classification"
    unit = "images"
    metric = "top1"
    compares = False
    ignore_index = -100  # 255 is a class like any other

    def __len__(self) -> int:
        return len(self.data)

    @property
    def names(self) -> Sequence[str]:
        """The pictures' paths."""
        return [str(path) for path in self.data.images]

    def settled(self, model: nn.Module) -> "Classification":
        """Return the data under the classes of a model; the first picture is run.

        Where the model's configuration names its classes and every folder is one of them, a
        folder is that class; else the folders in sorted order are the classes in index order, and
        there must be as many.
        """
        device = str(next(model.parameters()).device)
        count = class_logits(model, self.call(0, device), str(self.data.images[0])).shape[1]
        known, folders = self.reading.classes, self.data.classes
        if len(known) == count and set(folders) <= set(known) and len(set(known)) == count:
            indices = tuple(known.index(name) for name in folders)
            return replace(self, indices=indices, names_of_classes=known)
        if len(folders) != count:
            missing = [name for name in folders if name not in known]
            hint = f"; {missing[0]} is none of the model's names" if known else ", and names none"
            raise InputError(
                f"the model gives logits of {count} classes, but {self.data.root} has "
                f"{len(folders)} folders ({folders[0]} to {folders[-1]}){hint}; give every class a "
                "folder, or name folders as id2label of the model's config.json names its classes"
            )
        return replace(self, indices=tuple(range(count)), names_of_classes=folders)

    def call(self, index: int, device: str = "cpu") -> Example:
        """Return the call of one picture, as it is evaluated."""
        return Example((self.reading.preprocessing(self.data.picture(index), device),))

    def samples(self) -> Samples:
        """Return random crops of the pictures of every step, with their classes."""
        labels = tuple(self.indices[label] for label in self.data.labels)
        return self.reading.crops(replace(self.data, labels=labels))

    def evaluate(
        self,
        model: nn.Module,
        dense: nn.Module | None = None,  # noqa: ARG002 - scores are of the labels
        *,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Scores:
        """Count the pictures whose class is the model's first choice, or among its first five."""
        names = self.names_of_classes
        labels = torch.tensor([self.indices[label] for label in self.data.labels])
        logits = self._logits(model, device, progress)
        top = logits.topk(min(_TOP, logits.shape[1]), dim=1).indices
        first = top[:, 0] == labels
        per_class: dict[str, float | None] = {}
        for index in self.indices:
            of_class = labels == index
            occurs = bool(of_class.any())
            per_class[names[index]] = float(first[of_class].float().mean()) if occurs else None
        absent = [name for name, share in per_class.items() if share is None]
        notes = [] if not absent else [
            f"{len(absent)} of {len(per_class)} classes have no picture in this split: "
            f"{', '.join(absent[:_TOP])}{', ...' if len(absent) > _TOP else ''}"
        ]  # fmt: skip
        return Scores(
            len(self),
            {
                "top1": float(first.float().mean()),
                "top5": float((top == labels[:, None]).any(1).float().mean()),
            },
            {"top1": "top-1", "top5": "top-5"},
            {"per_class": per_class},
            ("class", ">top-1"),
            tuple((n, "-" if share is None else f"{share:.4f}") for n, share in per_class.items()),
            tuple(notes),
        )

    def _logits(self, model: nn.Module, device: str, progress: Progress | None) -> Tensor:
        """Return the logits of every picture, ``(images, classes)`` on the CPU, in order."""
        found: list[Tensor] = []
        waiting: list[Tensor] = []

        def run() -> None:
            if waiting:
                name = str(self.data.images[len(found)])
                call = Example((torch.cat(waiting),))
                found.extend(class_logits(model, call, name).float().cpu())
                waiting.clear()

        with evaluating(model), torch.no_grad():
            for index in range(len(self)):
                picture = self.call(index, device).args[0]
                if waiting and (len(waiting) == _TOGETHER or waiting[0].shape != picture.shape):
                    run()
                waiting.append(picture)
                if progress is not None:
                    progress(index + 1, len(self))
            run()
        return torch.stack(found)

    def exhibits(
        self, student: nn.Module, dense: nn.Module | None, *, count: int, device: str = "cpu"
    ) -> Sequence[Exhibit]:
        """Show pictures with what each model takes them for."""
        shown = []
        for index in spread_over(len(self), count):
            call, picture = self.call(index, device), self.data.picture(index)
            name = self.data.images[index].name
            rows = [("label", self.data.classes[self.data.labels[index]])]
            for who, model in (("teacher", dense), ("student", student)):
                if model is not None:
                    rows.append((who, _words(_choices(model, call, self.names_of_classes, name))))
            view, size = picture_view(picture)
            shown.append(Exhibit(name, {"picture": view}, size, tuple(rows)))
        return shown

    def shares(self) -> Sequence[float] | None:
        """Return each of the model's classes its share of the pictures."""
        counts = [0] * len(self.names_of_classes)
        for label in self.data.labels:
            counts[self.indices[label]] += 1
        return [count / len(self) for count in counts]

    def fingerprint(self) -> Any:
        """Return the folders' own, and the class of each folder."""
        return {**self.data.fingerprint(), "indices": list(self.indices)}


def class_logits(model: nn.Module, call: Example, name: str) -> Tensor:
    """Run a model on pictures and return its logits of classes.

    Args:
        model: of one class a picture.
        call: the pictures.
        name: of the first of them, for messages.

    Shape:
        returns ``(B, classes)``.

    Raises:
        InputError: if the model does not take the pictures, or its output is something else.
    """
    with evaluating(model), torch.no_grad():
        try:
            logits = logits_of(call.run(model))
        except (RuntimeError, ValueError) as error:
            if isinstance(error, DynpruneError):
                raise
            size = "x".join(str(side) for side in call.args[0].shape[:1:-1])
            raise InputError(
                f"the model does not take {name}, which goes in at {size} pixels "
                f"({str(error).splitlines()[0]}); give data.resize: [height, width] in a recipe"
            ) from error
    if logits.dim() != 2 or logits.shape[0] != call.batch:
        raise InputError(
            f"the model's output has the shape {tuple(logits.shape)}, but classification needs "
            f"logits ({call.batch}, classes); is it a classifier? data.task: features in a recipe "
            "compares features without labels"
        )
    return logits


def _choices(
    model: nn.Module, call: Example, classes: Sequence[str], name: str
) -> list[tuple[str, float]]:
    """Return the model's first classes of one picture, with their probabilities."""
    shares = F.softmax(class_logits(model, call, name)[0].float(), dim=0)
    best = shares.topk(min(_TOP, len(shares)))
    return [
        (classes[i] if i < len(classes) else f"class {i}", share)
        for i, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _words(choices: Sequence[tuple[str, float]], count: int = 3) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in choices[:count])


def _predict(
    model: nn.Module, inputs: Sequence[str], directory: Path, reading: Reading, device: str
) -> Iterator[Prediction]:
    """Classify pictures; what was found of all of them is written into ``classes.json``."""
    target, record = directory / "classes.json", []
    for path in inputs:
        call = Example((reading.preprocessing(read_picture(Path(path)), device),))
        choices = _choices(model, call, reading.classes, path)
        found = {"top": [{"class": name, "probability": share} for name, share in choices]}
        record.append({"image": path, **found})
        write_file(target, json.dumps(record, indent=2) + "\n")
        yield Prediction(path, {"classes": target}, found, _words(choices))


def _open(data: str, split: str, reading: Reading) -> Classification:
    return Classification(open_image_folder(Path(data), split), reading)


def _check(data: str, split: str) -> None:
    open_image_folder(Path(data), split)


def _recognises(data: str) -> bool:
    return is_image_folder(Path(data))


KIND = Kind(
    "classification",
    "train/CLASS/*.jpg with val/CLASS/*.jpg",
    _recognises,
    _check,
    _open,
    _predict,
)
