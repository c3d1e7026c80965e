"""Python looks for modules in the current folder first, where a `selftrain.py` may be the user's own."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).parents[3]  # of a checkout, or site-packages
VARIABLE = "PYTHONSAFEPATH"


def safe_path() -> dict[str, str]:
    """The environment in which a Python that we start leaves that folder out; PYTHONPATH counts as ever.

    In a checkout that folder is ours, and perhaps the only place where our packages are found.
    """
    return {} if ROOT.samefile(".") else {VARIABLE: "1"}


def folder_hides_us() -> bool:
    """Whether the current folder has a module or a package of our name (a mere folder hides nothing)."""
    found = PathFinder.find_spec("selftrain", [os.getcwd()])
    return not ROOT.samefile(".") and found is not None and found.origin is not None


@contextlib.contextmanager
def in_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of our own environment for the time of the block: processes that start in it inherit them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
