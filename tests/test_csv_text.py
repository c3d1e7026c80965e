"""Every text that is written as CSV comes back as it was, and no spreadsheet takes it for a formula."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selftrain.ssl_tasks.data.sources.table import columns_of, read_csv_columns
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.store.csv_text import csv_text, frame_text, guarded, plain, read_csv

STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", " =", "'=", "''-", "'", '"', "\ufeff", "\0", " ", "x\ry", "a,b;c")
TEXTS = st.builds("".join, st.lists(st.sampled_from(STARTS) | st.text(max_size=6), max_size=4))
once = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@once
@given(TEXTS)
def test_a_guarded_text_is_no_formula_and_comes_back(text: str) -> None:
    cell = guarded(text)
    assert isinstance(cell, str)
    assert plain(cell) == text
    assert cell.lstrip(" ")[:1] not in tuple("=+-@＝＋－＠")
    assert cell[:1] not in ("\t", "\r", "\n")


@once
@given(st.lists(st.tuples(TEXTS.filter(bool), TEXTS)))
def test_every_text_comes_back_from_a_file(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    path = tmp_path / "all.csv"
    path.write_bytes(csv_text(["a", "b"], rows).encode())
    assert read_csv(path, ["a", "b"]) == rows
    frame = pd.DataFrame(rows, columns=["a", "b"])
    assert frame_text(frame) == csv_text(["a", "b"], rows)


@once
@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_a_table_of_images_reads_what_an_export_wrote(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "all.csv"
    path.write_text(csv_text(["text", "number"], [(text, "1") for text in texts]), newline="")
    assert columns_of(path) == ["text", "number"]
    assert read_csv_columns(path, ["text"])["text"].to_pylist() == texts


def test_numbers_stay_numbers_and_names_of_columns_are_guarded() -> None:
    frame = pd.DataFrame({"score": [-1.5], "=cmd": ["=1+1"], "gap": [None], "count": [-3]})
    assert frame_text(frame) == "score,'=cmd,gap,count\n-1.5,'=1+1,,-3\n"


def test_rows_end_with_a_line_feed_and_a_carriage_return_is_quoted() -> None:
    assert csv_text(["a", "b"], [("x\ry", 'z"')]) == 'a,b\n"x\ry","z"""\n'
    assert next(csv.reader(io.StringIO('"x\ry"\n', newline=""))) == ["x\ry"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b\n1\n", "line 2 of .* has 1 cells; expected 2"),
        (b"a,b\n1,2,3\n", "has 3 cells"),
        (b"a,b\nx\ry,2\n", "has 1 cells"),  # what an earlier version wrote of x\ry
        (b'a,b\n"x,2\n', "cannot be read as CSV"),
        (b'a,b\n"x"y,2\n', "cannot be read as CSV"),
        (b"a,b\n\xff,2\n", "not UTF-8"),
        (b"a,a,b\n1,2,3\n", "2 columns 'a'"),
        (b"a,c\n1,2\n", "has the columns a, c; expected a and b, missing b"),
        (b"", "missing a, b"),
        (b"a,b\n" + b"x" * (1 << 20), "line 2 .* a million characters"),
    ],
)
def test_what_is_no_table_is_refused_in_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as failure:
        read_csv(path, ["a", "b"])
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("content", ["a;b\n1,0;2\n", "a\tb\n1,0\t2\n", '\ufeffb,a\n2,"1,0"\n\n', " a ,c, b\n'1,x,2\n"])
def test_other_delimiters_orders_and_further_columns_are_read(tmp_path: Path, content: str) -> None:
    path = tmp_path / "good.csv"
    path.write_text(content, encoding="utf-8")
    assert read_csv(path, ["a", "b"], ["d"]) == [("'1" if "'1" in content else "1,0", "2", "")]
