"""Defines the sections of a recipe as types, and reads recipes."""
