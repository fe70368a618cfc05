"""What a command is about: the MODEL that the user named, its recipe, and where it runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynprune.errors import InputError, UsageError
from dynprune.recipe import Recipe, load_recipe, recipe_names

if TYPE_CHECKING:
    from dynprune.example import Example
    from dynprune.models import LoadedModel
    from dynprune.pipeline.pictures import PictureRules

    from .terminal import Terminal

__all__ = [
    "check_data",
    "choose_device",
    "find_recipe",
    "is_recipe",
    "load_engine_file",
    "load_subject",
    "picture_rules",
    "place_of",
    "prepare",
    "require_recipe",
    "tell_classes",
]


def find_recipe(
    model: str | None,
    recipe: str | None,
    overrides: Sequence[str] | None,
    *,
    seed: int | None = None,
) -> Recipe | None:
    """Load the recipe that a command follows.

    It is the one of ``--recipe``; else the one that MODEL names; else the one that dynprune wrote
    beside MODEL's weights; else none.

    Raises:
        RecipeError: it does not exist or is invalid.
        UsageError: there are overrides and no recipe to override.
    """
    changes = list(overrides or ())
    if seed is not None:
        changes.append(f"runtime.seed={seed}")
    beside = Path(model or "") / "recipe.yaml"
    if recipe is not None:
        return load_recipe(recipe, changes)
    if model is not None and is_recipe(model):
        return load_recipe(model, changes)
    if model is not None and (beside.parent / "dynprune.json").is_file() and beside.is_file():
        return load_recipe(beside, changes)
    if overrides:
        raise UsageError("--set overrides a recipe, and there is none; add --recipe NAME")
    return None


def require_recipe(recipe: Recipe | None) -> Recipe:
    """Return the recipe, where a command cannot do without.

    Raises:
        UsageError: there is none.
    """
    if recipe is None:
        raise UsageError(
            f"this needs a recipe; add --recipe with one of {', '.join(recipe_names())}, or a file"
        )
    return recipe


def is_recipe(name: str) -> bool:
    """Whether MODEL is a recipe: a built-in one's name that is no directory, or a YAML file."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path.is_file()
    return name in recipe_names() and not path.is_dir()


def load_subject(
    model: str | None,
    recipe: Recipe | None,
    *,
    weights: str = "pretrained",
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    device: str = "auto",
    seed: int | None = None,
    example: "Example | None" = None,
) -> "LoadedModel":
    """Load the model that a command is about.

    Args:
        model: what the user typed; None, or a recipe's name, for the recipe's own model.
        recipe: what the command follows, or None.
        weights: ``random`` builds the architecture alone.
        size: height and width of the input in pixels, instead of the recipe's.
        batch: instances of one call, instead of the recipe's.
        device: where to put it.
        seed: of random weights; the recipe's by default.
        example: a call of the model, where the data shows one.

    Raises:
        UsageError: neither names a model.
        InputError: the model or its weights are missing or damaged.
    """
    from dynprune.models import load_model

    arguments: dict[str, Any] = {}
    name = None if model is None or is_recipe(model) else model
    if recipe is not None:
        from dynprune.pipeline.arguments import model_arguments

        arguments = model_arguments(recipe)
    if name is None:
        name = _default_model(recipe, weights)
    elif weights != "random":
        arguments.pop("config", None)
        arguments.pop("architecture", None)
    shape = list(arguments.get("input_shape") or (1, 3, 0, 0))
    if size is not None:
        shape[-2:] = size
    if batch is not None:
        shape[0] = batch
    arguments["input_shape"] = tuple(shape) if all(shape) else None
    if seed is not None:
        arguments["seed"] = seed
    loaded = load_model(
        name,
        weights="random" if weights == "random" else "pretrained",
        device=choose_device(device),
        example=example,
        **arguments,
    )
    if batch is not None and batch > 1 and loaded.example.batch != batch:
        # Neither a recipe nor --input-size gave the shape: the model's own example did.
        loaded = replace(loaded, example=loaded.example.batched(batch))
    return loaded


def load_engine_file(
    model: str,
    recipe: Recipe | None,
    terminal: "Terminal",
    *,
    device: str = "cpu",
    threads: int | None = None,
) -> "tuple[LoadedModel, PictureRules]":
    """Load a file for an engine, and settle how pictures and labels are read for it.

    It says itself how; a recipe goes first.

    Args:
        model: the file.
        recipe: what the command follows, or None.
        terminal: takes notes.
        device: where the user wants it; a file runs on the CPU.
        threads: of one inference.

    Raises:
        UsageError: it cannot run there.
        InputError: it is missing or damaged.
    """
    from dynprune.export.engine_file import open_engine_file
    from dynprune.pipeline.int8 import rules_of

    if device != "cpu":
        raise UsageError(
            f"{model} is run by its engine on the CPU; --device {device} is not for it"
        )
    loaded, facts = open_engine_file(Path(model), threads=threads or 0)
    if recipe is not None:
        return loaded, picture_rules(loaded, recipe, terminal)
    return loaded, rules_of(facts)


def place_of(model: str, device: str) -> str:
    """Return the device that a model, or a file for an engine, runs on.

    Raises:
        UsageError: this machine has no such device.
    """
    from dynprune.export.engine_file import is_engine_file

    return "cpu" if device == "auto" and is_engine_file(model) else choose_device(device)


def check_data(directory: str, split: str) -> None:
    """Refuse a data set that is not there, before a model is loaded for it.

    Raises:
        InputError: there is no such data set or split, or a picture has no label map.
    """
    from dynprune.data.layouts import find_layout

    find_layout(Path(directory), split)


def picture_rules(
    loaded: "LoadedModel", recipe: Recipe | None, terminal: "Terminal"
) -> "PictureRules":
    """Settle how pictures and labels are read, and tell the user what decides it.

    Raises:
        InputError: the model's own preprocessing cannot be followed.
    """
    from dynprune.pipeline import pictures

    rules = pictures.picture_rules(recipe, loaded)
    for note in rules.notes:
        terminal.note(note)
    return rules


def tell_classes(loaded: "LoadedModel", named: Sequence[str], terminal: "Terminal") -> None:
    """Warn where a model and a data set name the same classes in another order, or other ones.

    Args:
        loaded: the model, whose configuration may name its classes.
        named: classes of the data set, in index order.
        terminal: takes the note.
    """
    own = loaded.classes
    differ = [
        index for index, pair in enumerate(zip(own, named, strict=False)) if len(set(pair)) > 1
    ]
    if len(own) != len(named) or not differ:
        return
    index = differ[0]
    order = "the same classes in another order" if set(own) == set(named) else "other classes"
    terminal.note(
        f"the model's configuration names {order} than the data set ({len(differ)} of {len(own)} "
        f"differ; class {index} is {own[index]} to the model and {named[index]} to the data); "
        "labels are taken by their index"
    )


def prepare(threads: int | None, recipe: Recipe | None = None) -> None:
    """Set the number of CPU threads, before any work is done."""
    import torch

    wanted = threads if threads is not None else recipe.runtime.threads if recipe else None
    if wanted is not None:
        torch.set_num_threads(wanted)


def choose_device(name: str) -> str:
    """Turn ``auto`` into a device, and make sure that the one asked for is there.

    Raises:
        UsageError: this machine or this PyTorch has no such device.
    """
    import torch

    if name == "auto":
        found = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        return str(found) if found is not None else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"--device {name} is not here: {str(error).splitlines()[0]} Use --device cpu."
        ) from error
    return name


def _default_model(recipe: Recipe | None, weights: str) -> str | None:
    """Return the name of a recipe's own model; None where it is built without weights."""
    if recipe is None:
        raise UsageError("no model was named: give MODEL, or --recipe NAME for its default")
    if weights == "random":
        if recipe.model.config is None:
            raise UsageError(
                f"recipe {recipe.name} has no model.config to build random weights from; give MODEL"
            )
        return None
    if recipe.model.factory is not None:
        raise UsageError(
            f"recipe {recipe.name} is for {recipe.model.factory}, and code that a recipe names is "
            f"never run; name it yourself as MODEL: {recipe.model.factory}"
        )
    if recipe.model.weights is None:
        raise InputError(
            f"recipe {recipe.name} has no model.weights, since none are published; give MODEL, a "
            "directory with config.json and model.safetensors, or --weights random"
        )
    return recipe.model.weights
