"""Shows the progress of stages as bars on a terminal or as lines elsewhere, and reads it from their events."""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger("selftrain")
LINE_SECONDS = 10.0
TAIL = 1 << 18  # bytes read from the end of the file, so that the rate is that of the last few minutes
Show = Callable[[int, int, str], None]  # done, total, unit


class Display(Protocol):
    """Shows the progress of one run's stages, which may compute at the same time."""

    def stage(self, name: str) -> AbstractContextManager[Show]:
        """Shows a stage within the block; yields the function that reports its progress."""
        ...


def display() -> Display:
    """Returns bars if the log goes to a terminal, and lines if it goes to a file."""
    return Bars() if sys.stderr.isatty() else Lines()


class Bars:
    """Shows one bar for each running stage below the log."""

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
    """Writes a line to the log for each running stage, at most every ten seconds."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Show]:
        said = time.monotonic()

        def show(done: int, total: int, what: str) -> None:
            nonlocal said
            if time.monotonic() - said >= LINE_SECONDS:
                said = time.monotonic()
                log.info("%s · %s %d/%d", name, what, done, total)

        yield show


@dataclass(frozen=True)
class Progress:
    """The progress of a running stage: `done` of `total`, its rate and the remaining time."""

    done: int
    total: int
    what: str  # train, images
    rate: float | None  # per second; None until there are two events
    remaining_seconds: float | None


def read_progress(events: Path, since: float) -> Progress | None:
    """Returns the newest progress that the stage has written since it started; None if there is none."""
    found = [(one["time"], *one["progress"], one.get("what", "")) for one in _tail(events) if _counts(one, since)]
    if not found:
        return None
    end, done, total, what = found[-1]
    begin, first = next((at, before) for at, before, whole, kind in found if (whole, kind) == (total, what))
    rate = (done - first) / (end - begin) if end > begin and done > first else None
    return Progress(done, total, what, rate, None if rate is None else round((total - done) / rate, 1))


def _counts(event: dict[str, Any], since: float) -> bool:
    return "progress" in event and event["time"] >= since


def _tail(events: Path) -> Iterator[dict[str, Any]]:
    try:
        with events.open("rb") as file:
            file.seek(max(0, events.stat().st_size - TAIL))
            lines = file.read(TAIL).splitlines()
    except OSError:  # the stage has not started, or its artifact is being committed
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # an incomplete line: the first of the tail, or one being written
            continue
        if isinstance(event, dict) and "time" in event:
            yield event
