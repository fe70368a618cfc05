"""Models: where they come from, how they are loaded, and how they are written."""

from dynprune.models.load import load_model
from dynprune.models.provenance import (
    Provenance,
    is_fixed,
    provenance_of,
    records_of,
    set_provenance,
)
from dynprune.models.source import LoadedModel, ModelSource, build, classes_of, source_of

__all__ = [
    "LoadedModel",
    "ModelSource",
    "Provenance",
    "build",
    "classes_of",
    "is_fixed",
    "load_model",
    "provenance_of",
    "records_of",
    "set_provenance",
    "source_of",
]
