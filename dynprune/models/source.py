"""Where a model's architecture comes from, and how it is built again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from dynprune.errors import InputError, UsageError
from dynprune.example import Example
from dynprune.host.chance import seeded
from dynprune.host.imports import import_function, working_directory_on_path
from dynprune.host.wrappers import unwrapped
from dynprune.models.pretrained import (
    build_architecture,
    configuration_of,
)

__all__ = ["LoadedModel", "ModelSource", "build", "classes_of", "run_factory", "source_of"]


@dataclass(frozen=True)
class ModelSource:
    """Where a model's architecture comes from; plain values, so that a manifest can hold it.

    Attributes:
        kind: ``transformers`` or ``factory``.
        architecture: class name of the transformers library.
        config: its configuration, ``model_type`` among it.
        factory: ``module:function`` that returns the model.
    """

    kind: Literal["transformers", "factory"]
    architecture: str | None = None
    config: Mapping[str, Any] | None = None
    factory: str | None = None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ModelSource":
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: if the record is not complete.
        """
        kind = record.get("kind")
        if kind == "transformers":
            architecture, config = record.get("architecture"), record.get("config")
            if isinstance(architecture, str) and isinstance(config, Mapping):
                return cls("transformers", architecture=architecture, config=config)
        if kind == "factory" and isinstance(record.get("factory"), str):
            return cls("factory", factory=record["factory"])
        raise InputError(
            f"the record of a model's source is not complete (kind {kind!r}): expected "
            "'transformers' with architecture and config, or 'factory' with factory"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the source as plain values."""
        if self.kind == "factory":
            return {"kind": self.kind, "factory": self.factory}
        config = dict(self.config or {})
        return {"kind": self.kind, "architecture": self.architecture, "config": config}


@dataclass(frozen=True)
class LoadedModel:
    """A model, and what is needed to call it and to build it again.

    Attributes:
        module: the model, in evaluation mode.
        example: one call that it understands.
        source: where its architecture comes from.
        classes: names of its classes in index order; empty where it has none.
        name: what the user asked for.
        processor: settings of its own image processor, as they lie beside its weights; None
            where there are none.
    """

    module: nn.Module
    example: Example
    source: ModelSource
    classes: tuple[str, ...]
    name: str
    processor: Mapping[str, Any] | None = None


def build(
    source: ModelSource,
    *,
    factory: Callable[[], nn.Module] | str | None = None,
    seed: int = 0,
    most: int | None = None,
) -> nn.Module:
    """Build an architecture without weights; torch's random state is left as it was.

    Code is imported only where the caller names it: a source that was read from a file and names
    a factory needs ``factory`` as well.

    Args:
        source: what to build.
        factory: the function, or its ``module:function`` as the user typed it.
        seed: of the fresh parameters.
        most: parameters that a configuration may ask for; by default as many as this machine's
            memory holds. A factory of the user's own is not bounded.

    Raises:
        InputError: if the source cannot be built, or needs a factory and none was given.
    """
    with seeded(seed):
        if source.kind == "transformers":
            return build_architecture(source.architecture or "", source.config or {}, most=most)
        if factory is None:
            raise InputError(
                f"this model was made by {source.factory}, and code that a file names is never "
                f"run; name it yourself: {source.factory}@DIRECTORY"
            )
        if isinstance(factory, str):
            return run_factory(factory)
        return unwrapped(factory()).eval()


def source_of(model: nn.Module, factory: str | None = None) -> ModelSource:
    """Return where ``model`` comes from.

    Raises:
        UsageError: if it is no transformers model and no factory is given.
    """
    if factory is not None:
        return ModelSource("factory", factory=factory)
    config = configuration_of(model)
    if config is None:
        raise UsageError(
            f"{type(model).__name__} is no transformers model; give the module:function that "
            "makes it, so that it can be built again"
        )
    return ModelSource("transformers", architecture=config["architectures"][0], config=config)


def classes_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a model's classes, where its configuration has more than numbers."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, Mapping) or sorted(names) != list(range(len(names))):
        return ()
    if all(str(name) == f"LABEL_{index}" for index, name in names.items()):
        return ()
    return tuple(str(names[index]) for index in range(len(names)))


def run_factory(factory: str) -> nn.Module:
    """Import and call ``module:function``; the working directory counts as on the path."""
    function = import_function(factory)
    with working_directory_on_path():
        try:
            model = function()
        except Exception as error:  # the user's own code: whatever it raises is the answer
            raise InputError(f"{factory} raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{factory} returned {type(model).__name__}; it must return an nn.Module")
    return unwrapped(model).eval()
