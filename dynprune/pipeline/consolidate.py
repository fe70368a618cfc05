"""A trained gated model becomes one with experts and fixed layers, with its history kept."""

from collections.abc import Sequence
from dataclasses import replace

from dynprune.example import Example
from dynprune.models import LoadedModel, provenance_of, set_provenance
from dynprune.planning.consolidate import Consolidation, consolidate

__all__ = ["consolidate_model"]


def consolidate_model(
    loaded: LoadedModel, calls: Sequence[Example], *, experts: int = 4
) -> Consolidation:
    """Replace the gates of a loaded model by experts and fixed sets, in place: `consolidate`."""
    known = provenance_of(loaded.module)
    found = consolidate(loaded.module, loaded.example, calls, experts=experts)
    new = replace(known, rewrites=(*known.rewrites, *found.records), refitted=known.refitted or 1)
    set_provenance(loaded.module, new)
    return found
