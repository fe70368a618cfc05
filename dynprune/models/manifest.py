"""The manifest of a directory that dynprune wrote: its name, its version, and how it is read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from dynprune.errors import InputError
from dynprune.gate import GateConfig
from dynprune.gate.instances import InstanceLayout
from dynprune.gate.plan import HeadAttribute
from dynprune.rewrite import Rewrite

__all__ = ["MANIFEST", "SCHEMA", "Manifest", "is_as_written", "read_manifest", "sealed"]

MANIFEST = "dynprune.json"
"""The file that marks a directory as written by dynprune."""

SCHEMA = "dynprune/1"
MOST_BYTES = 64 << 20
_SEAL = "digest"


def _is_type(name: str) -> str:
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"{name!r} is no type of numbers")
    return name


_Type = Annotated[str, AfterValidator(_is_type)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Channels(_Strict):
    module: str
    neurons: int
    size: int
    index: list[int | list[int]]
    beside: str | None = None


class _Group(_Strict):
    name: str
    kind: str
    producers: list[_Channels]
    carriers: list[_Channels]
    consumers: list[_Channels]
    neurons: int
    heads: int
    reason: str | None
    parameters: list[str]
    causal: bool


class _Products(_Strict):
    host: str
    products: int
    places: list[int]
    width: int
    index: list[list[int]]
    heads: list[int]


class _Plan(_Strict):
    group: _Group
    config: dict[str, Any]
    mode: str
    reason: str | None
    layout: dict[str, Any]
    heads: list[dict[str, Any]]
    products: _Products | None = None


class Manifest(_Strict):
    """What a manifest must say for its model to be built; other keys are for readers.

    Attributes:
        source: record of a `ModelSource`.
        name: what the user called the model.
        input: shape of one call's first tensor.
        classes: their names.
        rewrites: records of `Rewrite`.
        groups: records of `GroupPlan`.
        prune_ratios: gate's name -> share of neurons that it skips.
        dtype: of most numbers.
        dtypes: tensor's name -> its type, where it is another one.
        refitted: layers whose weights were refitted.
        steps: optimizer steps of training.
    """

    source: dict[str, Any]
    name: str
    input: list[int]
    classes: list[str]
    rewrites: list[dict[str, Any]]
    groups: list[_Plan]
    prune_ratios: dict[str, float]
    dtype: _Type
    dtypes: dict[str, _Type] = {}
    refitted: int = 0
    steps: int = 0


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read and check a directory's manifest, every field that a model is built from.

    Raises:
        InputError: where it is missing, too large, no manifest of this version, or says of a field
            what that cannot be.
    """
    path = directory / MANIFEST
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path} is larger than any manifest: {path.stat().st_size} bytes.")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"Cannot read {path}: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(f"{path} has schema {repr(found)[:40]}; this dynprune reads {SCHEMA!r}.")
    try:
        _check(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path} does not describe a model that can be built: {error.title}.{key}: "
            f"{first['msg']}. Write it again with dynprune apply."
        ) from error
    return manifest


def _check(manifest: Mapping[str, Any]) -> None:
    """Check every field that a model is built from."""
    Manifest.model_validate(manifest)
    for record in manifest["rewrites"]:
        _check_record(record, Rewrite)
    for plan in manifest["groups"]:
        _check_record(plan["config"], GateConfig)
        _check_record(plan["layout"], InstanceLayout)
        for head in plan["heads"]:
            _check_record(head, HeadAttribute)


def _check_record(record: Mapping[str, Any], kind: type) -> None:
    """Check that a record has the fields of a dataclass, each of its type."""
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(record) - known):
        raise InputError(
            f"{MANIFEST} says {unknown[0]} of a {kind.__name__}, which this dynprune does not "
            "know; it was written by another version"
        )
    TypeAdapter(kind).validate_json(json.dumps(record), strict=True)


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the digest of all that it says."""
    return {**manifest, _SEAL: _digest(manifest)}


def is_as_written(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest says what dynprune wrote: what fails to build it is then our own fault."""
    return manifest.get(_SEAL) == _digest(manifest)


def _digest(manifest: Mapping[str, Any]) -> str:
    said = {key: value for key, value in manifest.items() if key != _SEAL}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
