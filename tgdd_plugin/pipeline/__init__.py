"""Recipes, and what each ``tgdd`` command does with them."""
