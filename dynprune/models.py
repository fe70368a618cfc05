"""Load any model by the name that a user gives, with what is needed to call and rebuild it."""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dynprune.errors import InputError, UsageError
from dynprune.example import Example
from dynprune.inputs import carried_example, example_of
from dynprune.pretrained import (
    build_architecture,
    configuration_of,
    load_pretrained,
    read_configuration,
)

__all__ = ["LoadedModel", "ModelSource", "build", "classes_of", "load_model", "source_of"]

MANIFEST = "dynprune.json"
"""The file that marks a directory as written by dynprune."""

_FACTORY = re.compile(r"(?P<factory>[A-Za-z_][\w.]*:[A-Za-z_][\w.]*)(@(?P<directory>.+))?")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


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
        """Give the source as plain values."""
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
    """

    module: nn.Module
    example: Example
    source: ModelSource
    classes: tuple[str, ...]
    name: str


def load_model(
    name: str | None,
    *,
    weights: Literal["pretrained", "random"] = "pretrained",
    architecture: str | None = None,
    config: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> LoadedModel:
    """Load a model by name.

    Args:
        name: a directory that dynprune wrote, a transformers directory or hub name,
            ``module:factory`` for a function that returns an nn.Module, or
            ``module:factory@DIR`` for a directory that dynprune wrote of such a model. ``None``
            where random weights are built from ``config``.
        weights: ``random`` builds the architecture alone, for counting and timing.
        architecture: class of the transformers library that ``config`` is for.
        config: transformers configuration, ``model_type`` among it; with random weights it goes
            before the named model's own.
        input_shape: shape of the example call; by default the model's own configuration tells.
        device: where the model and its example go.
        seed: of random weights.

    Raises:
        InputError: if there is no such model, or its weights are missing or damaged.
        UsageError: if the arguments cannot be meant together.
    """
    found = _find(name, weights, architecture, config, seed)
    carried = carried_example(found.module)
    shape = input_shape or (found.input_shape if carried is None else None)
    example = example_of(found.module, shape).to(device)
    return LoadedModel(
        module=found.module.to(device).eval(),
        example=example,
        source=found.source,
        classes=found.classes,
        name=name or architecture or type(found.module).__name__,
    )


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source.kind == "transformers":
            return build_architecture(source.architecture or "", source.config or {}, most=most)
        if factory is None:
            raise InputError(
                f"this model was made by {source.factory}, and code that a file names is never "
                f"run; name it yourself: {source.factory}@DIRECTORY"
            )
        if isinstance(factory, str):
            return _run_factory(factory)
        return factory().eval()


def source_of(model: nn.Module, factory: str | None = None) -> ModelSource:
    """Tell where ``model`` comes from.

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
    """Give the names of a model's classes, where its configuration has more than numbers."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, Mapping) or sorted(names) != list(range(len(names))):
        return ()
    if all(str(name) == f"LABEL_{index}" for index, name in names.items()):
        return ()
    return tuple(str(names[index]) for index in range(len(names)))


@dataclass(frozen=True)
class _Found:
    """What a name led to; no input shape where the model's own configuration tells it."""

    module: nn.Module
    source: ModelSource
    classes: tuple[str, ...]
    input_shape: tuple[int, ...] | None = None


def _find(
    name: str | None,
    weights: str,
    architecture: str | None,
    config: Mapping[str, Any] | None,
    seed: int,
) -> _Found:
    """Follow a name to a model."""
    directory = Path(name) if name is not None else None
    if directory is not None and (directory / MANIFEST).is_file():
        return _load_written(directory, None)
    matched = _FACTORY.fullmatch(name or "")
    if matched and not (directory and directory.exists()):
        return _follow_factory(matched["factory"], matched["directory"])
    if weights == "random":
        source = _random_source(name, architecture, config)
        module = build(source, seed=seed)
    elif name is None:
        raise UsageError("no model was named; give MODEL, or build one with --weights random")
    else:
        _check_name(name)
        module = load_pretrained(name)
        source = source_of(module)
    return _Found(module, source, classes_of(module))


def _random_source(
    name: str | None, architecture: str | None, config: Mapping[str, Any] | None
) -> ModelSource:
    if config is not None:
        if architecture is None:
            raise UsageError("a config needs the architecture that it is for, a class's name")
        return ModelSource("transformers", architecture=architecture, config=dict(config))
    if name is None:
        raise UsageError("random weights need an architecture: name a model or a recipe")
    _check_name(name)
    found = read_configuration(name)
    named = (found.get("architectures") or ["AutoModel"])[0]
    return ModelSource("transformers", architecture=named, config=found)


def _check_name(name: str) -> None:
    """Refuse what can be neither a directory nor a hub name, before anything is looked up."""
    if os.path.isdir(name):
        return
    if os.path.exists(name):
        raise InputError(f"no model at {name}: it is a file; give the directory it lies in")
    if not _HUB_NAME.fullmatch(name):
        raise InputError(
            f"no model at {name!r}: no such directory, and it is no hub name (owner/name) and no "
            "module:factory"
        )


def _load_written(directory: Path, factory: str | None) -> _Found:
    """Load a directory that dynprune wrote; the modules that do are above this one."""
    from dynprune.provenance import provenance_of
    from dynprune.storage import load

    module = load(directory, factory=factory)
    known = provenance_of(module)
    return _Found(module, known.source, known.classes, known.input_shape or None)


def _follow_factory(factory: str, directory: str | None) -> _Found:
    if directory is None:
        module = _run_factory(factory)
        return _Found(module, ModelSource("factory", factory=factory), classes_of(module))
    if not (Path(directory) / MANIFEST).is_file():
        raise InputError(f"{directory} was not written by dynprune: it holds no {MANIFEST}")
    return _load_written(Path(directory), factory)


def _run_factory(factory: str) -> nn.Module:
    """Import and call ``module:function``; the working directory counts as on the path."""
    module_name, _, attribute = factory.partition(":")
    with _working_directory_on_path():
        try:
            function: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{factory}: no module {error.name!r}; it is looked for in the working directory "
                "and in the installed packages"
            ) from error
        except Exception as error:  # the user's own code: whatever it raises is the answer
            raise InputError(
                f"{factory}: importing {module_name} raised {type(error).__name__}: {error}"
            ) from error
        for part in attribute.split("."):
            function = getattr(function, part, None)
        if not callable(function):
            raise InputError(f"{factory}: {module_name} has no function {attribute!r}")
        try:
            model = function()
        except Exception as error:  # as above
            raise InputError(f"{factory} raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{factory} returned {type(model).__name__}; it must return an nn.Module")
    return model.eval()


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
