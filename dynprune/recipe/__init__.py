"""Recipes: what is pruned, by how much, and how the student learns."""

from dynprune.recipe.load import (
    dump_recipe,
    load_recipe,
    parse_recipe,
    recipe_names,
    recipe_text,
)
from dynprune.recipe.schema import Recipe

__all__ = [
    "Recipe",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "recipe_names",
    "recipe_text",
]
