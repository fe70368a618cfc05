"""Write docs/cli.md from the commands, and docs/recipes.md from the schema and the recipes.

Run it after a change of either: python docs/generate.py
"""

import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from dynprune.cli.main import app
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dynprune.recipe import Recipe, load_recipe, recipe_names

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py: change the source, not this page. -->\n"


def command_page() -> str:
    """Describe every command, its arguments and its options."""
    root = typer.main.get_command(app)
    parts = [
        "# Command line\n",
        NOTE,
        "Results go to stdout, progress and logs to stderr; with `--json`, stdout holds one JSON "
        "document and nothing else.\n",
        "| exit code | means |\n|---|---|\n"
        "| 0 | done |\n"
        "| 1 | a bug, of dynprune or of the model's own code |\n"
        "| 2 | bad usage, or an invalid recipe |\n"
        "| 3 | a recipe's target or ignore pattern matches nothing |\n"
        "| 4 | data, weights or a file is missing or unreadable, or cannot be written |\n"
        "| 5 | a bound of `--fail-if`, or a law of `check`, is broken |\n"
        "| 130 | interrupted; a training run has saved its state |\n",
        "`dynprune --install-completion` teaches your shell to complete commands and options.\n",
    ]
    for path, command in sorted(_leaves(root, ["dynprune"])):
        parts.append(_command(" ".join(path), command))
    return "\n".join(parts)


def _leaves(command: Any, path: list[str]) -> typing.Iterator[tuple[list[str], Any]]:
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from _leaves(child, [*path, name])
        else:
            yield [*path, name], child


def _command(title: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join([title, *(_metavar(argument) for argument in arguments), "[OPTIONS]"])
    lines = [f"## {title}\n", f"{_prose(command.help)}\n", f"    {usage}\n"]
    lines += ["| argument or option | default | what it is |", "|---|---|---|"]
    for parameter in [*arguments, *options]:
        is_option = parameter.param_type_name == "option"
        flags = ", ".join(parameter.opts) if is_option else ""
        value = "" if getattr(parameter, "is_flag", False) else _metavar(parameter)
        name = f"{flags} {value}".strip()
        lines.append(f"| {_code(name)} | {_default(parameter)} | {_cell(parameter.help or '')} |")
    return "\n".join(lines) + "\n"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or "VALUE")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.default in (None, False):
        return ""
    return _code(str(parameter.default))


def recipe_page() -> str:
    """Describe every key of a recipe, and list the built-in ones."""
    parts = [
        "# Recipes\n",
        NOTE,
        "A recipe is a YAML file that says what is pruned, by how much, and how the student "
        "learns. `dynprune recipe copy NAME` gives you one to change; `--set key.path=value` "
        "changes a value for one command, before the recipe is validated. Lists are reached by "
        "index, as in `--set stages.0.steps=1000`.\n",
        "Scalars follow YAML 1.2: `on` is a word and `1e-4` is a number. Tags are refused, and so "
        "are duplicate keys. Unknown keys and wrong values are errors, all reported at once.\n",
        "## Built-in recipes\n",
        "| name | what it is for | prune ratio | steps |\n|---|---|---|---|",
    ]
    for name in recipe_names():
        recipe = load_recipe(name)
        parts.append(
            f"| `{name}` | {_cell(recipe.description)} | {recipe.sparsity.final} | {recipe.steps} |"
        )
    parts.append("\n## Every key\n")
    parts.append(_section("recipe", Recipe))
    parts += _sections(Recipe, "")
    return "\n".join(parts)


def _sections(owner: type[BaseModel], prefix: str) -> list[str]:
    parts = []
    for name, field in owner.model_fields.items():
        many = _is_list(field.annotation)
        path = f"{prefix}{field.alias or name}{'[i]' if many else ''}"
        for section in _models(field.annotation):
            parts.append(_section(path, section))
            parts += _sections(section, f"{path}.")
    return parts


def _section(title: str, section: type[BaseModel]) -> str:
    kinds = _allowed_types(section)
    heading = f"### {_code(title) if title != 'recipe' else 'Top level'}{kinds}\n"
    lines = [heading, f"{_prose(section.__doc__)}\n"]
    lines += ["| key | value | default | what it is |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        lines.append(
            f"| `{field.alias or name}` | {_type(field)} | {_field_default(field)} "
            f"| {_cell(field.description or '')} |"
        )
    return "\n".join(lines) + "\n"


def _allowed_types(section: type[BaseModel]) -> str:
    """For one of several sections in the same place, the types that choose it."""
    field = section.model_fields.get("type")
    if field is None or not field.is_required():
        return ""
    return " with `type` " + ", ".join(_code(str(value)) for value in get_args(field.annotation))


def _field_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.default
    if default is PydanticUndefined or isinstance(default, BaseModel):
        return ""
    if default is None:
        return "`null`"
    if isinstance(default, tuple):
        return _code("[" + ", ".join(str(item) for item in default) + "]")
    if isinstance(default, bool):
        return _code(str(default).lower())
    return _code(str(default)) if default != "" else ""


def _type(field: FieldInfo) -> str:
    return " ".join([_words(field.annotation), _limits(field.metadata)]).strip()


def _limits(rules: Iterable[Any]) -> str:
    """Write the bounds of a number, wherever pydantic keeps them."""
    found = []
    for rule in rules:
        for inner in (rule, *getattr(rule, "metadata", ())):
            for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
                limit = getattr(inner, name, None)
                if limit is not None:
                    found.append(f"{sign} {limit:g}")
    return ", ".join(found)


def _words(annotation: Any) -> str:
    """Name a type as a recipe's author sees it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return " ".join([_words(arguments[0]), _limits(arguments[1:])]).strip()
    if origin is typing.Literal:
        return ", ".join(_code(str(value)) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        words = dict.fromkeys(_words(part) for part in arguments if part is not type(None))
        return " or ".join(words)
    if origin is tuple:
        if Ellipsis in arguments:
            return f"list of {_words(arguments[0])}"
        return "[" + ", ".join(_words(part) for part in arguments) + "]"
    if origin is dict or annotation is dict:
        return "keys and values"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {int: "integer", float: "number", str: "text", bool: "true or false"}
    return names.get(annotation, "value")


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple or any(map(_is_list, get_args(annotation)))


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _prose(text: str | None) -> str:
    paragraphs = (text or "").strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


PAGES = {"cli.md": command_page, "recipes.md": recipe_page}


def main() -> None:
    """Write every generated page."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
