"""Contains all code that imports Prefect."""
