"""Time that does not depend on what else the machine has to do: another test process, say."""

import time
from pathlib import Path

SCHEDULER = Path("/proc/thread-self/schedstat")  # of this thread, in nanoseconds: on a processor, waiting for one, …


def own_seconds() -> float:
    """Wall time less what this thread spent waiting for a processor; to be subtracted from a later one."""
    try:
        waited = int(SCHEDULER.read_text().split()[1])
    except FileNotFoundError:  # not Linux
        waited = 0
    return time.monotonic() - waited / 1e9
