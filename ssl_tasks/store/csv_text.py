"""CSV as this package writes and reads it: UTF-8, quoted as RFC 4180 says, with no cell that a spreadsheet would run.

A spreadsheet takes a text that begins with one of = + - @, a tab or a line break for a formula. Such a text is written
with an apostrophe before it, and so is a text that has apostrophes before such a beginning. Reading takes one
apostrophe away again, so every text comes back as it was.
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
DELIMITERS = ",;\t"  # spreadsheets of some countries write the others
MOST_LINE = 1 << 20  # characters; a longer line is no line of a table that a person wrote
_formula = re.compile(FORMULA)


def guarded(value: object) -> object:
    """A text as a cell that no spreadsheet runs; anything else, such as a number, as it is."""
    return f"'{value}" if isinstance(value, str) and _formula.match(value) else value


def plain(cell: str) -> str:
    """The text of a cell that `guarded` made."""
    return cell[1:] if cell.startswith("'") and _formula.match(cell) else cell


def csv_text(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    text = io.StringIO()
    writer = csv.writer(_LineFeeds(text), lineterminator="\r\n")
    writer.writerows([guarded(cell) for cell in row] for row in (names, *rows))
    return text.getvalue()


def write_frame(frame: "pd.DataFrame", file: TextIO, header: bool = True) -> None:
    """A data frame; its numbers stay numbers."""
    safe = frame.copy(deep=False)
    for at, kind in enumerate(frame.dtypes):
        if kind.kind == "O":
            safe.isetitem(at, [guarded(value) for value in frame.iloc[:, at]])
    safe.columns = [guarded(str(name)) for name in frame.columns]
    safe.to_csv(_LineFeeds(file), index=False, header=header, lineterminator="\r\n")


def frame_text(frame: "pd.DataFrame") -> str:
    """A data frame as CSV."""
    text = io.StringIO()
    write_frame(frame, text)
    return text.getvalue()


class _LineFeeds(io.TextIOBase):
    """Ends rows with a line feed alone. Python's writer quotes a lone carriage return only where rows end with one."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, row: str) -> int:
        """Takes one row, as `csv.writer` writes it."""
        return self.file.write(row.removesuffix("\r\n") + "\n")


def read_csv(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """These columns as text, row by row; an optional one that is not there is empty. Lines without a text are left out.

    Raises DataError where a row has more or fewer cells than the first line has names: nothing is guessed.
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
    """The one that finds the names in the first line; a comma where none does."""
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
