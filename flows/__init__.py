"""Contains the command line, the functions behind it, the order of stages, and all code that uses Prefect."""
