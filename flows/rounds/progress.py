"""Shows the progress of running stages: as bars on a terminal, elsewhere as an occasional line."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

log = logging.getLogger("selftrain")
LINE_SECONDS = 10.0
Show = Callable[[int, int, str], None]  # done, total, of what


class Display(Protocol):
    """Shows the stages of one run, which may compute at the same time."""

    def stage(self, name: str) -> AbstractContextManager[Show]:
        """While a stage computes; what it gives is called with each progress."""
        ...


def display() -> Display:
    """Returns the display for the place that our log goes to."""
    return Bars() if sys.stderr.isatty() else Lines()


class Bars:
    """One bar for each stage at work, below the log; gone when there is none."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bars = Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4)
        self.active, self.lock = 0, threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[Show]:
        bar = self.bars.add_task(name, total=None)
        self._count(1)
        try:
            yield lambda done, total, what: self.bars.update(
                bar, completed=done, total=total, description=f"{name} · {what}"
            )
        finally:
            self.bars.remove_task(bar)
            self._count(-1)

    def _count(self, change: int) -> None:
        with self.lock:
            self.active += change
            if self.active == 0:
                self.bars.stop()
            elif self.active == change:  # the first
                self.bars.start()


class Lines:
    """A line of the log for each stage at work, at most every ten seconds."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Show]:
        said = time.monotonic()

        def show(done: int, total: int, what: str) -> None:
            nonlocal said
            if time.monotonic() - said >= LINE_SECONDS:
                said = time.monotonic()
                log.info("%s · %s %d/%d", name, what, done, total)

        yield show
