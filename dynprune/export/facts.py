"""What a file for an engine says about itself: classes, and how pictures and labels are read.

It travels inside the file, as metadata, so that `dynprune eval` and `dynprune predict` need nothing
else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dynprune.data import LabelValues, Preprocessing, Resize
from dynprune.errors import InputError

__all__ = ["KEY", "FileFacts"]

KEY = "dynprune"
"""Of the metadata that holds the facts, as one JSON text."""

_LONGEST = 1 << 24  # characters: more is no record of ours


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _ResizeRecord(_Strict):
    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None
    resample: int = 2


class _Record(_Strict):
    version: int
    precision: str
    classes: list[str]
    mean: list[float]
    std: list[float]
    resize: _ResizeRecord | None
    window: list[int] | None
    stride: list[int] | None
    ignore: list[int]
    reduce: bool
    mapping: dict[str, int]
    processor: dict[str, Any] | None


@dataclass(frozen=True)
class FileFacts:
    """The facts of one file.

    Attributes:
        classes: names in index order; empty where the model names none.
        preprocessing: how pictures go in.
        values: what the values in label maps mean.
        processor: settings of the model's own image processor, or None.
        precision: of the file, which says in what arithmetic an engine runs it.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    values: LabelValues
    processor: Mapping[str, Any] | None = None
    precision: str = "fp32"

    def to_text(self) -> str:
        """Return the facts as the text that is stored."""
        own, values = self.preprocessing, self.values
        return json.dumps(
            {
                "version": 1,
                "precision": self.precision,
                "classes": list(self.classes),
                "mean": [float(value) for value in own.mean],
                "std": [float(value) for value in own.std],
                "resize": None if own.resize is None else vars(own.resize),
                "window": _plain(own.window),
                "stride": _plain(own.stride),
                "ignore": list(values.ignore),
                "reduce": values.reduce,
                "mapping": {str(value): index for value, index in values.mapping.items()},
                "processor": None if self.processor is None else dict(self.processor),
            }
        )

    @classmethod
    def from_text(cls, text: str | None, path: Path) -> "FileFacts":
        """Read what `to_text` wrote.

        Args:
            text: the metadata; None where the file has none.
            path: of the file, for messages.

        Raises:
            InputError: it is missing or damaged.
        """
        advice = "write the file with dynprune export"
        if not text:
            raise InputError(
                f"{path} does not say how pictures go in and which classes come out (no metadata "
                f"{KEY!r}): dynprune did not write it, or an earlier version did; {advice}"
            )
        try:
            if len(text) > _LONGEST:
                raise ValueError("it is too long")
            record = _Record.model_validate_json(text)
            if len(record.mean) != 3 or len(record.std) != 3:
                raise ValueError("mean and std have a value for each of three channels")
            mapping = {int(value): index for value, index in record.mapping.items()}
        except (ValidationError, ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"what {path} says of itself (metadata {KEY!r}) is damaged: {reason}; "
                f"{advice} again"
            ) from error
        resize = None if record.resize is None else Resize(**record.resize.model_dump())
        return cls(
            classes=tuple(record.classes),
            preprocessing=Preprocessing(
                record.mean, record.std, resize, record.window, record.stride
            ),
            values=LabelValues(tuple(record.ignore), record.reduce, mapping),
            processor=record.processor,
            precision=record.precision,
        )


def _plain(values: Sequence[int] | None) -> list[int] | None:
    return None if values is None else [int(value) for value in values]
