"""Source tables with odd columns: `data` ends with a result or one sentence with a documented code."""

import datetime
import decimal
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selftrain.flows.cli.main import main

ROWS = 4


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def column(values: list[Any], kind: pa.DataType | None = None) -> Callable[[], pa.Array]:
    return lambda: pa.array((values * ROWS)[:ROWS], kind)


COLUMNS: dict[str, Callable[[], pa.Array]] = {
    "paths": column(["0.png", "1.png", "2.png", "3.png"]),
    "labels": column(["cat", "dog", None, ""]),
    "numbers": column([0, 1, -1, None], pa.int64()),
    "large numbers": column([2**64 - 1], pa.uint64()),
    "fractions": column([0.0, 1.5, float("nan"), float("inf")]),
    "huge fractions": column([1e300]),
    "booleans": column([True, False, None]),
    "decimals": column([decimal.Decimal("1.50"), None], pa.decimal128(10, 2)),
    "dates": column([datetime.date(1, 1, 1)]),
    "times": column([2**62], pa.timestamp("ns", "UTC")),
    "durations": column([2**62], pa.duration("us")),
    "nulls": column([None], pa.null()),
    "lists": column([[1], [], None], pa.list_(pa.int32())),
    "nested": column([[[{"a": [1]}]]]),
    "structs": column([{"a": 1}, None]),
    "structs with bytes": column([{"bytes": png(1), "path": "x"}, {"bytes": None, "path": None}]),
    "structs with text as bytes": column([{"bytes": "text"}]),
    "structs with lists as bytes": column([{"bytes": [1, 2]}]),
    "maps": column([[("a", 1)]], pa.map_(pa.string(), pa.int32())),
    "dictionaries": lambda: pa.array(["cat", "dog", None, "cat"]).dictionary_encode(),
    "dictionaries of bytes": lambda: pa.array([png(n) for n in range(ROWS)]).dictionary_encode(),
    "bytes": column([png(0), b"", None, b"no image"], pa.binary()),
    "large bytes": column([png(3)], pa.large_binary()),
    "fixed bytes": column([b"abcd"], pa.binary(4)),
    "byte views": column([png(2)], pa.binary_view()),
    "large text": column(["cat", "dog"], pa.large_string()),
    "text views": column(["cat", "dog"], pa.string_view()),
    "huge text": column(["x" * 2_000_000]),
    "control letters": column(["\x00", "\x1b[2J", "a\nb\r", "\u202e"]),
    "paths out": column(["/etc/passwd", "../x", "a/../../x", "/proc/kmsg"]),
    "no paths": column([".", "/", "\x00.png", "x" * 5000]),
    "none": lambda: pa.array([], pa.string()),
}
NAMES = ["image", "label", "id", "split", "", "image\x00", "a\nb", "\u202e"]


def check(folder: Path, table: Path, source: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Looks at the table as `init` and `data` do."""
    recipe = folder / "recipe.yaml"
    data = {"source": {"name": "table", "path": str(table), **source}, "max_unreadable": 1.0}
    recipe.write_text(json.dumps({"name": "odd", "data": data}))
    words = ["--workspace", str(folder / "workspace")]
    for asked in (["data", str(recipe)], ["init", str(table), "--output", str(folder / "made.yaml")]):
        code = main([*words, *asked])
        shown = capsys.readouterr()
        assert code in (0, 2, 3), shown.err
        assert "unexpected" not in shown.err, shown.err
        assert "\x1b" not in shown.out + shown.err
    (folder / "made.yaml").unlink(missing_ok=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with four images."""
    for number in range(ROWS):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    return tmp_path


@settings.get_profile("fuzz")
@given(chosen=st.tuples(*[st.sampled_from(sorted(COLUMNS))] * 4), used=st.sets(st.sampled_from(["id", "split"])))
def test_parquet_of_any_types_ends_with_a_result_or_a_sentence(
    images: Path, chosen: tuple[str, ...], used: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("image", "label", "id", "split")
    arrays = [COLUMNS[name]() for name in chosen]
    if any(len(array) == 0 for array in arrays):
        arrays = [array.slice(0, 0) for array in arrays]
    pq.write_table(pa.table(arrays, list(names)), images / "odd.parquet")
    check(images, images / "odd.parquet", {name: name for name in used}, capsys)


@pytest.mark.parametrize("role", ["image", "label"])
def test_each_type_of_column_alone_ends_with_a_result_or_a_sentence(
    images: Path, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, make in COLUMNS.items():
        other = COLUMNS["none"]() if name == "none" else COLUMNS["labels" if role == "image" else "paths"]()
        table = pa.table({role: make(), {"image": "label", "label": "image"}[role]: other})
        pq.write_table(table, images / "odd.parquet")
        check(images, images / "odd.parquet", {}, capsys)


@settings.get_profile("fuzz")
@given(
    lines=st.lists(
        st.lists(st.one_of(st.sampled_from([*NAMES, "0.png", "cat"]), st.text(max_size=6)), max_size=4), max_size=5
    ),
    noise=st.binary(max_size=20),
)
def test_csv_of_any_text_ends_with_a_result_or_a_sentence(
    images: Path, lines: list[list[str]], noise: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(["image,label", *(",".join(line) for line in lines)]).encode("utf-8", "surrogatepass")
    for contents in (text + noise, noise, noise + text):
        (images / "odd.csv").write_bytes(contents)
        check(images, images / "odd.csv", {}, capsys)


@settings.get_profile("fuzz")
@given(noise=st.binary(max_size=60), at=st.integers(0, 2000))
def test_a_damaged_parquet_file_is_one_sentence(
    images: Path, noise: bytes, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = images / "odd.parquet"
    pq.write_table(pa.table({"image": COLUMNS["paths"](), "label": COLUMNS["labels"]()}), path)
    contents = bytearray(path.read_bytes())
    contents[at : at + len(noise)] = noise
    path.write_bytes(contents)
    check(images, path, {}, capsys)
