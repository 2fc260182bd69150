"""Recipes: YAML files, data and no code."""
