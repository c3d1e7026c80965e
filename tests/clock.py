"""Time in tests: deadlines for hangs, and durations that do not depend on what else the machine has to do."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
HANG = 300.0  # seconds after which something counts as never coming; no claim about speed
SCHEDULER = Path("/proc/thread-self/schedstat")  # of this thread, in nanoseconds: on a processor, waiting for one, …


def own_seconds() -> float:
    """Wall time less what this thread spent waiting for a processor; to be subtracted from a later one."""
    try:
        waited = int(SCHEDULER.read_text().split()[1])
    except FileNotFoundError:  # not Linux
        waited = 0
    return time.monotonic() - waited / 1e9


def until(answer: Callable[[], T], what: str = "what was waited for", pause: float = 0.05) -> T:
    """Asks again and again until the answer is true, and returns it; fails after HANG seconds."""
    deadline = time.monotonic() + HANG
    while not (found := answer()):
        assert time.monotonic() < deadline, f"{what} has not come within {HANG:g} s"
        time.sleep(pause)
    return found
