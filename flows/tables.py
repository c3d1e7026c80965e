"""Prints tables and numbers on a terminal. Text from data is stripped of control characters first."""

import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: object) -> str:
    """Replaces control characters, which could move the cursor, colour the screen or reverse text."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text)).replace("\n", " ")


def printable_lines(text: object) -> str:
    """Replaces control characters in text of several lines."""
    return "\n".join(map(printable, str(text).split("\n")))


def print_table(rows: Sequence[Mapping[str, object]], right: Collection[str] = ()) -> None:
    """Prints rows with equal keys as an aligned table on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        print("no rows")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(Text(printable(name)), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(value)) for value in row.values()))
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False).print(table)


def counted(number: int, noun: str) -> str:
    """Formats a number and its noun, such as: 1 folder; 1,200 folders."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def share(value: float | None) -> str:
    """Formats a share as a percentage: 0.9533 → 95.3 %."""
    return "" if value is None else f"{100 * value:.1f} %"


def seconds(value: float) -> str:
    """Formats seconds: 75 → 1:15; 3.2 → 3.2 s."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(value: float) -> str:
    """Formats bytes: 53_300 → 53.3 kB; 1_283_611 → 1.3 MB."""
    if value < 1000:
        return f"{value:.0f} bytes"
    power = min(4, int(math.log10(value)) // 3)
    return f"{value / 1000**power:.1f} {'kMGT'[power - 1]}B"
