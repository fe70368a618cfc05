"""`dynprune recipe`: list, show, copy and validate recipes."""

from pathlib import Path
from typing import Annotated

import typer

from dynprune.errors import OutputError
from dynprune.recipe import dump_recipe, load_recipe, parse_recipe, recipe_names, recipe_text

from .examples import epilog
from .options import Json, Overrides, Overwrite
from .terminal import Terminal, table

app = typer.Typer(no_args_is_help=True, help="List, show, copy and validate recipes.")

Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A built-in recipe, or a file.")]


@app.command("list", epilog=epilog("recipe list"))
def list_recipes(json: Json = False) -> None:
    """List the built-in recipes."""
    recipes = {name: load_recipe(name) for name in recipe_names()}
    Terminal(json=json).result(
        {
            "recipes": [
                {
                    "name": name,
                    "description": recipe.description,
                    "input": recipe.model.input,
                    "prune_ratio": recipe.sparsity.final,
                    "steps": recipe.steps,
                }
                for name, recipe in recipes.items()
            ]
        },
        table(
            "name",
            ">prune ratio",
            ">steps",
            "description",
            rows=[
                (name, recipe.sparsity.final, recipe.steps, recipe.description)
                for name, recipe in recipes.items()
            ],
        ),
    )


@app.command(epilog=epilog("recipe show"))
def show(name: Name, overrides: Overrides = None, json: Json = False) -> None:
    """Print a recipe as it is written; with --set or --json as it resolves, every default in it."""
    terminal = Terminal(json=json)
    recipe = load_recipe(name, overrides or ())
    if json:
        terminal.result(recipe.to_data())
    else:
        terminal.text(dump_recipe(recipe) if overrides else recipe_text(name))


@app.command(epilog=epilog("recipe copy"))
def copy(
    name: Name,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Default: NAME.yaml.")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Copy a recipe, comments and all, to a file of your own."""
    text = recipe_text(name)
    target = Path(output or f"{Path(name).stem}.yaml")
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists; choose another -o, or add --overwrite")
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}") from error
    Terminal(json=json).result({"output": str(target)}, f"{target}")


@app.command(epilog=epilog("recipe validate"))
def validate(name: Name, overrides: Overrides = None, json: Json = False) -> None:
    """Check a recipe and report all its errors at once."""
    recipe = parse_recipe(recipe_text(name), overrides or (), origin=f"recipe {name}")
    Terminal(json=json).result(
        {"recipe": recipe.name, "valid": True}, f"recipe {recipe.name} is valid"
    )
