"""Where a model came from and what was done to it, kept on the model so that it can be saved."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dynprune.models.processor import processor_beside
from dynprune.models.source import ModelSource, source_of
from dynprune.rewrite import Rewrite
from dynprune.rewrite.cuts import expert_groups, fixed_groups

__all__ = [
    "Provenance",
    "is_fixed",
    "provenance_of",
    "records_of",
    "set_provenance",
    "without_place",
]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")

ATTRIBUTE = "_dynprune_provenance"


@dataclass(frozen=True)
class Provenance:
    """The history of a model.

    Attributes:
        source: where its architecture comes from.
        name: what the user called it.
        input_shape: of one call's first tensor, instances first.
        classes: names of its classes; empty where it has none.
        rewrites: made and refused.
        recipe: the resolved recipe as YAML, or None.
        processor: settings of the model's own image processor, or None.
        refitted: layers whose weights were refitted in closed form.
        steps: optimizer steps of its training, where it was loaded and they are known.
        from_files: whether it was loaded from files that dynprune wrote.
    """

    source: ModelSource
    name: str
    input_shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    recipe: str | None = None
    processor: Mapping[str, Any] | None = None
    refitted: int = 0
    steps: int = 0
    from_files: bool = False


def without_place(name: str) -> str:
    """Return what a user called a model without where it lay: no path goes into what is written.

    A hub's ``owner/name`` stays, and of ``module:factory@DIRECTORY`` the directory's own name.

    Example:
        >>> without_place("/home/somebody/models/teacher")
        'teacher'
    """
    factory, at, place = name.rpartition("@")
    if at and ":" in factory:
        return f"{factory}@{without_place(place)}"
    if _HUB_NAME.fullmatch(name) and not Path(name).exists():
        return name
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] or name


def set_provenance(model: nn.Module, provenance: Provenance) -> None:
    """Keep the history on the model, in place."""
    setattr(model, ATTRIBUTE, provenance)


def provenance_of(model: nn.Module) -> Provenance:
    """Return a model's history; a bare transformers model tells its own.

    Raises:
        UsageError: where nothing is known of it.
    """
    known = vars(model).get(ATTRIBUTE)
    if isinstance(known, Provenance):
        return known
    source = source_of(model)
    return Provenance(source, type(model).__name__, (), processor=processor_beside(model))


def known_provenance(model: nn.Module) -> Provenance | None:
    """Return the history that was kept on a model, None where there is none."""
    known = vars(model).get(ATTRIBUTE)
    return known if isinstance(known, Provenance) else None


def records_of(model: nn.Module) -> tuple[Rewrite, ...]:
    """Return the records of a model's rewrites, none where nothing is known of it."""
    known = vars(model).get(ATTRIBUTE)
    return known.rewrites if isinstance(known, Provenance) else ()


def is_fixed(model: nn.Module) -> bool:
    """Whether groups of a model keep one set of neurons for every input, or have experts."""
    records = records_of(model)
    return bool(fixed_groups(records) or expert_groups(records))
