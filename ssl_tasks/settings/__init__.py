"""The sections of a recipe as types, and reading a recipe."""
