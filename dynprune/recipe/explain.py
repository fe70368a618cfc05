"""What pydantic found wrong with a recipe, in the recipe's own keys and in one line each."""

import difflib
import json
from typing import Any

from pydantic import BaseModel, ValidationError

from dynprune.recipe.schema import Recipe

__all__ = ["explain", "name_value"]


def explain(error: ValidationError, data: Any) -> list[str]:
    """List every error of a recipe, each with the key that the user wrote.

    Args:
        error: what validating ``data`` against `Recipe` raised.
        data: the recipe as plain values.
    """
    items = error.errors()
    places = [item["loc"] for item in items]
    return [
        line
        for item in items
        # A list whose items are wrong is also "too short": the items' own errors say it all.
        if item["type"] != "too_short"
        or not any(place[: len(item["loc"])] == item["loc"] != place for place in places)
        for line in _lines(item, data)
    ]


def _lines(item: Any, data: Any) -> list[str]:
    """Say one of pydantic's errors in our words, a line for each key it concerns."""
    key, owner = _locate(item["loc"], data)
    kind, found = item["type"], item.get("input")
    if kind == "missing":
        return [f"{key}: is missing"]
    if kind == "extra_forbidden":
        known = [f.alias or name for name, f in owner.model_fields.items()] if owner else []
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return [f"{key}: unknown key; {hint}"]
    if kind == "union_tag_not_found":
        return [f"{key}.type: is missing"]
    if kind == "union_tag_invalid":
        choices = item["ctx"]["expected_tags"].replace("'", "")
        return [f"{key}.type: {name_value(found['type'])} is none of {choices}"]
    if kind == "value_error":
        message = str(item["ctx"]["error"])
        if not key:
            return message.splitlines()
        return [f"{key}: {line}" for line in message.splitlines()]
    message = item["msg"]
    return [f"{key}: {message[:1].lower()}{message[1:]}, found {name_value(found)}"]


def _locate(loc: tuple[str | int, ...], data: Any) -> tuple[str, type[BaseModel] | None]:
    """Turn pydantic's location into the key that the user wrote, and the section it is in.

    A union puts a tag or a type into the location; it is no key of the data and is left out.
    """
    key, place = "", data
    owner: Any = Recipe
    for depth, part in enumerate(loc):
        if isinstance(part, int):
            key += f"[{part}]"
            place = place[part] if isinstance(place, list) and part < len(place) else None
            continue
        if place is not None and not isinstance(place, dict):
            continue
        if isinstance(place, dict) and part not in place and part == place.get("type"):
            owner = _section(owner, part)
            continue
        key += f".{part}" if key else part
        place = place.get(part) if isinstance(place, dict) else None
        if depth < len(loc) - 1:
            owner = _field(owner, part)
    return key, owner if isinstance(owner, type) else None


def _field(owner: Any, name: str) -> Any:
    """The type under one key of a section, bare of optionality and containers."""
    fields = getattr(owner, "model_fields", {})
    for known, field in fields.items():
        if (field.alias or known) == name:
            return _sections(field.annotation)
    return None


def _sections(annotation: Any) -> Any:
    """The section in an annotation, or a tuple of them where there is a choice."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found: list[Any] = []
    for part in getattr(annotation, "__args__", ()):
        inside = _sections(part)
        found.extend(inside if isinstance(inside, tuple) else [inside] if inside else [])
    return found[0] if len(found) == 1 else tuple(found)


def _section(owner: Any, tag: str) -> Any:
    """Of several sections the one whose ``type`` may be ``tag``."""
    for section in owner if isinstance(owner, tuple) else (owner,):
        field = getattr(section, "model_fields", {}).get("type")
        if field is not None and tag in getattr(field.annotation, "__args__", ()):
            return section
    return None


def name_value(value: Any) -> str:
    """Name a YAML value for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
