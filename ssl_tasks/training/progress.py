"""Shows progress on stderr: as a bar on a terminal, elsewhere as an occasional line."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_SECONDS = 10.0


class Progress(Protocol):
    """Shows the progress of a loop, which calls it after each step."""

    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """`done` of all are done; `values` are the newest numbers, where there are new ones."""
        ...


@contextmanager
def show_progress(what: str, total: int, visible: bool = True) -> Iterator[Progress]:
    """A rich bar where stderr is a terminal; else one line at most every ten seconds, and the last."""
    if not visible:
        yield _Silent()
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, TextColumn("{task.fields[values]}"), console=Console(stderr=True)) as bar:
            yield _Bar(bar, what, total)
    else:
        lines = _Lines(what, total)
        yield lines
        lines.print()


class _Silent:
    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        pass


class _Bar:
    def __init__(self, bar: "Bar", what: str, total: int) -> None:
        self.bar, self.task = bar, bar.add_task(what, total=total, values="")

    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        if values:
            self.bar.update(self.task, completed=done, values=_spell(values))
        else:
            self.bar.update(self.task, completed=done)


class _Lines:
    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done, self.values = what, total, 0, ""
        self.printed = time.monotonic()

    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        self.done = done
        if values:
            self.values = _spell(values)
        if time.monotonic() - self.printed >= LINE_SECONDS:
            self.print()

    def print(self) -> None:
        """Writes the line now."""
        self.printed = time.monotonic()
        print(f"{self.what} {self.done}/{self.total}  {self.values}".rstrip(), file=sys.stderr, flush=True)


def _spell(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items() if value == value)
