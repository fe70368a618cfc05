"""Recipes: YAML, checked by a schema, turned into plain arguments."""
