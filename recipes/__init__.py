"""The recipes that ship with dynprune; read them with `dynprune.recipe.load`."""
