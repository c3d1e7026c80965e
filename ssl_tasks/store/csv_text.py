"""Reads and writes CSV in UTF-8, quoted as in RFC 4180, without cells that a spreadsheet would run as a formula.

A spreadsheet reads a text that begins with one of = + - @, a tab or a line break as a formula. Such a text is written
with an apostrophe before it, and so is a text that has apostrophes before such a beginning. Reading removes one
apostrophe, so every text is read as it was written.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from selftrain.ssl_tasks.errors import DataError, brief, one_line

if TYPE_CHECKING:
    import _csv

    import pandas as pd

FORMULA = r"'*(?: *[=+\-@＝＋－＠]|[\t\r\n])"  # also in report/static/corrections.js
DELIMITERS = ",;\t"  # spreadsheets write ; or a tab in some countries
MOST_LINE = 1 << 20  # characters; a longer line is not from a table that someone wrote
_formula = re.compile(FORMULA)


def guarded(value: object) -> object:
    """Returns a text as a cell that no spreadsheet runs; other values, such as numbers, are unchanged."""
    return f"'{value}" if isinstance(value, str) and _formula.match(value) else value


def plain(cell: str) -> str:
    """Returns the text of a cell that `guarded` made."""
    return cell[1:] if cell.startswith("'") and _formula.match(cell) else cell


def csv_text(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of texts as CSV."""
    text = io.StringIO()
    writer = csv.writer(_LineFeeds(text), lineterminator="\r\n")
    writer.writerows([guarded(cell) for cell in row] for row in (names, *rows))
    return text.getvalue()


def write_frame(frame: "pd.DataFrame", file: TextIO, header: bool = True) -> None:
    """Writes a data frame as CSV; numbers stay numbers."""
    safe = frame.copy(deep=False)
    for at, kind in enumerate(frame.dtypes):
        if kind.kind == "O":
            safe.isetitem(at, [guarded(value) for value in frame.iloc[:, at]])
    safe.columns = [guarded(str(name)) for name in frame.columns]
    safe.to_csv(_LineFeeds(file), index=False, header=header, lineterminator="\r\n")


def frame_text(frame: "pd.DataFrame") -> str:
    """Returns a data frame as CSV."""
    text = io.StringIO()
    write_frame(frame, text)
    return text.getvalue()


class _LineFeeds(io.TextIOBase):
    """Ends rows with a line feed only. Python's writer quotes a lone carriage return only if rows end with one."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, row: str) -> int:
        """Takes one row, as `csv.writer` writes it."""
        return self.file.write(row.removesuffix("\r\n") + "\n")


def read_csv(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Yields the given columns as text, row by row. A missing optional column is empty; empty lines are skipped.

    Raises DataError if a row has more or fewer cells than the first line has names.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = _lines(file, path)
            first = next(lines, "")
            delimiter = _delimiter(first, names)
            reader = csv.reader(_joined(first, lines), delimiter=delimiter, strict=True)
            header = [plain(name).strip() for name in next(reader, [])]
            places = _places(header, names, optional, path)
            return [tuple(row) for row in _rows(reader, len(header), places, path)]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise DataError(
            f"{path} cannot be read as CSV ({one_line(str(error))}); a text in quotes ends with a quote, and "
            "a quote within it is written twice"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(MOST_LINE), ""), 1):
        if len(line) == MOST_LINE:
            raise DataError(f"line {number} of {path} has a million characters or more; expected a CSV file")
        yield line


def _joined(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _delimiter(first: str, names: Sequence[str]) -> str:
    """Returns the delimiter with which the first line has the given names; a comma if none does."""
    for delimiter in DELIMITERS:
        header = next(csv.reader([first], delimiter=delimiter), [])
        if set(names) <= {plain(name).strip() for name in header}:
            return delimiter
    return ","


def _places(header: list[str], names: Sequence[str], optional: Sequence[str], path: Path) -> list[int]:
    if missing := [name for name in names if name not in header]:
        raise DataError(
            f"{path} has the columns {brief(header)}; expected {' and '.join(names)}, missing {', '.join(missing)}"
        )
    if twice := [name for name in (*names, *optional) if header.count(name) > 1]:
        raise DataError(f"{path} has {header.count(twice[0])} columns '{twice[0]}'; expected one")
    return [header.index(name) if name in header else -1 for name in (*names, *optional)]


def _rows(reader: "_csv.Reader", width: int, places: list[int], path: Path) -> Iterator[list[str]]:
    for row in reader:
        if not any(row):
            continue
        if len(row) != width:
            raise DataError(
                f"line {reader.line_num} of {path} has {len(row)} cells; expected {width}, as the first line has. "
                "Put texts with commas, quotes or line breaks into double quotes"
            )
        yield [plain(row[at]) if at >= 0 else "" for at in places]
