"""Load any model by the name that a user gives, with what is needed to call and rebuild it."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dynprune.errors import InputError, UsageError
from dynprune.example import Example
from dynprune.models.inputs import carried_example, example_of
from dynprune.models.manifest import MANIFEST
from dynprune.models.pretrained import load_pretrained, read_configuration
from dynprune.models.processor import find_processor, processor_beside
from dynprune.models.provenance import provenance_of
from dynprune.models.source import (
    LoadedModel,
    ModelSource,
    build,
    classes_of,
    run_factory,
    source_of,
)
from dynprune.models.storage import load

__all__ = ["load_model"]

_FACTORY = re.compile(r"(?P<factory>[A-Za-z_][\w.]*:[A-Za-z_][\w.]*)(@(?P<directory>.+))?")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def load_model(
    name: str | None,
    *,
    weights: Literal["pretrained", "random"] = "pretrained",
    architecture: str | None = None,
    config: Mapping[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    example: Example | None = None,
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
        example: a call of the model, where one is at hand; else one is made up, or the model's own.

    Raises:
        InputError: if there is no such model, or its weights are missing or damaged.
        UsageError: if the arguments cannot be meant together.
    """
    found = _find(name, weights, architecture, config, seed)
    if example is None:
        carried = carried_example(found.module)
        shape = input_shape or (found.input_shape if carried is None else None)
        example = example_of(found.module, shape)
    return LoadedModel(
        module=found.module.to(device).eval(),
        example=example.to(device),
        source=found.source,
        classes=found.classes,
        name=name or architecture or type(found.module).__name__,
        processor=found.processor,
    )


@dataclass(frozen=True)
class _Found:
    """What a name led to; no input shape where the model's own configuration tells it."""

    module: nn.Module
    source: ModelSource
    classes: tuple[str, ...]
    input_shape: tuple[int, ...] | None = None
    processor: Mapping[str, Any] | None = None


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
    processor = None
    if weights == "random":
        source = _random_source(name, architecture, config)
        module = build(source, seed=seed)
    elif name is None:
        raise UsageError("no model was named; give MODEL, or build one with --weights random")
    else:
        _check_name(name)
        module = load_pretrained(name)
        source = source_of(module)
        processor = find_processor(name)
    return _Found(module, source, classes_of(module), processor=processor)


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
    """Load a directory that dynprune wrote."""
    module = load(directory, factory=factory)
    known = provenance_of(module)
    shape = known.input_shape or None
    return _Found(module, known.source, known.classes, shape, known.processor)


def _follow_factory(factory: str, directory: str | None) -> _Found:
    if directory is None:
        module = run_factory(factory)
        source = ModelSource("factory", factory=factory)
        return _Found(module, source, classes_of(module), processor=processor_beside(module))
    if not (Path(directory) / MANIFEST).is_file():
        raise InputError(f"{directory} was not written by dynprune: it holds no {MANIFEST}")
    return _load_written(Path(directory), factory)
