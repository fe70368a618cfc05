"""Where a model came from and what was done to it, kept on the model so that it can be saved."""

from dataclasses import dataclass

from torch import nn

from dynprune.models.source import ModelSource, source_of
from dynprune.rewrite import Rewrite
from dynprune.rewrite.narrow import fixed_groups

__all__ = ["Provenance", "is_fixed", "provenance_of", "records_of", "set_provenance"]

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
    """

    source: ModelSource
    name: str
    input_shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    recipe: str | None = None


def set_provenance(model: nn.Module, provenance: Provenance) -> None:
    """Keep the history on the model, in place."""
    setattr(model, ATTRIBUTE, provenance)


def provenance_of(model: nn.Module) -> Provenance:
    """Give a model's history; a bare transformers model tells its own.

    Raises:
        UsageError: where nothing is known of it.
    """
    known = vars(model).get(ATTRIBUTE)
    if isinstance(known, Provenance):
        return known
    return Provenance(source_of(model), type(model).__name__, ())


def records_of(model: nn.Module) -> tuple[Rewrite, ...]:
    """Return the records of a model's rewrites, none where nothing is known of it."""
    known = vars(model).get(ATTRIBUTE)
    return known.rewrites if isinstance(known, Provenance) else ()


def is_fixed(model: nn.Module) -> bool:
    """Whether groups of a model keep one set of neurons for every input, the rest removed."""
    return bool(fixed_groups(records_of(model)))
