"""From a recipe's name or file and its overrides to a validated recipe, or to all its errors."""

import difflib
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dynprune.errors import InputError, RecipeError
from dynprune.recipe.explain import explain, name_value
from dynprune.recipe.schema import Recipe
from dynprune.recipe.source import SIZE_LIMIT_BYTES, dump_yaml, parse_yaml

__all__ = ["dump_recipe", "load_recipe", "parse_recipe", "recipe_names", "recipe_text"]

_BUILT_IN = "dynprune.recipes"


def recipe_names() -> list[str]:
    """List the built-in recipes by name, sorted."""
    files = resources.files(_BUILT_IN).iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def recipe_text(name_or_path: str | Path) -> str:
    """Read a recipe's YAML, comments and all: a file where there is one, else a built-in recipe.

    Args:
        name_or_path: a file's path, or the name of a built-in recipe.

    Raises:
        RecipeError: neither exists, or the file is not text.
        InputError: the file cannot be read.
    """
    path = Path(name_or_path)
    try:
        if path.is_file():
            with path.open("rb") as file:
                return file.read(SIZE_LIMIT_BYTES + 1).decode("utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not a recipe: it is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise InputError(f"the recipe {str(path)!r} cannot be read: {error}") from None
    names = recipe_names()
    if str(name_or_path) in names:
        return resources.files(_BUILT_IN).joinpath(f"{name_or_path}.yaml").read_text("utf-8")
    close = difflib.get_close_matches(str(name_or_path), names, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"Built-in recipes: {', '.join(names)}."
    raise RecipeError(
        f"recipe {str(name_or_path)!r}: there is neither such a file nor such a built-in recipe. "
        f"{hint}"
    )


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load, override and validate a recipe.

    Args:
        name_or_path: a file's path, or the name of a built-in recipe.
        overrides: ``key.path=value`` each, the value in YAML; they apply before validation.

    Raises:
        RecipeError: the recipe does not exist or is invalid; every error with its key.
        InputError: the file cannot be read.

    Example:
        >>> load_recipe("segformer-b0", ["sparsity.final=0.5"]).sparsity.final
        0.5
    """
    return parse_recipe(recipe_text(name_or_path), overrides, origin=f"recipe {name_or_path}")


def parse_recipe(text: str, overrides: Sequence[str] = (), *, origin: str = "recipe") -> Recipe:
    """Override and validate a recipe given as YAML text.

    Args:
        text: the YAML document.
        overrides: as for `load_recipe`.
        origin: what the recipe is called in messages.

    Raises:
        RecipeError: it is invalid; every error with its key.
    """
    data = parse_yaml(text, origin=origin)
    if not isinstance(data, dict):
        raise RecipeError(
            f"{origin} is not a recipe: it holds {name_value(data)}, not keys and values"
        )
    for override in overrides:
        _apply_override(data, override)
    try:
        return Recipe.model_validate_json(json.dumps(data))
    except ValidationError as error:
        lines = explain(error, data)
        count = "1 error" if len(lines) == 1 else f"{len(lines)} errors"
        raise RecipeError("\n  ".join([f"{origin} has {count}:", *lines])) from None
    except RecursionError:
        raise RecipeError(f"{origin} is not a recipe: it is nested too deeply") from None


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML that `load_recipe` reads back to an equal one."""
    return dump_yaml(recipe.to_data())


def _apply_override(data: dict[str, Any], override: str) -> None:
    """Set one ``key.path=value`` in place."""
    path, equals, text = override.partition("=")
    keys = [key for key in re.split(r"\.|\[(\d+)\]", path.strip()) if key]
    if not equals or not keys:
        raise RecipeError(
            f"--set {override!r} is not key.path=value, such as --set sparsity.final=0.5"
        )
    value = parse_yaml(text, origin=f"the value of --set {override!r}")
    place: Any = data
    for depth, key in enumerate(keys):
        here = ".".join(keys[:depth]) or "the recipe"
        index: str | int = key
        if isinstance(place, list):
            if not key.isdecimal() or int(key) > len(place):
                raise RecipeError(
                    f"--set {override!r}: {here} is a list of {len(place)}; "
                    f"{key!r} must be an index from 0 to {len(place)}"
                )
            index = int(key)
            if index == len(place):
                place.append(None)
        elif not isinstance(place, dict):
            raise RecipeError(f"--set {override!r}: {here} holds {name_value(place)}, not keys")
        if depth == len(keys) - 1:
            place[index] = value
            return
        if isinstance(place, dict) and place.get(key) is None:
            place[key] = {}
        elif isinstance(place, list) and place[int(index)] is None:
            place[int(index)] = {}
        place = place[index]
