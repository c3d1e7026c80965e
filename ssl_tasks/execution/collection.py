"""Garbage collection, kept away from imports: they make hundreds of thousands of objects, and none of it is garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_own_process = False


@contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is collected within the block: a fifth of the time of a large import."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if _own_process:
                gc.freeze()
            gc.enable()


def own_process() -> None:
    """Says that this process is ours to its end, which comes without freeing: later collections pass over imports.

    A notebook's process is not: what is garbage there would be kept, and complained of when it ends.
    """
    global _own_process
    _own_process = True


def is_own_process() -> bool:
    """Whether this process is the command line's own."""
    return _own_process
