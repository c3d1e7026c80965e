"""Reads a CSV or Parquet file with a row per image: a path or the bytes of an image file, and an optional label."""

import contextlib
from collections.abc import Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from selftrain.ssl_tasks.data.sources.base import SPLITS, Blobs, ImageSource, Listing, Places, below, existing, regular
from selftrain.ssl_tasks.data.splits import lookalikes
from selftrain.ssl_tasks.errors import DataError, nearest
from selftrain.ssl_tasks.settings.data import TableSource
from selftrain.ssl_tasks.store.csv_text import FORMULA
from selftrain.ssl_tasks.store.file_digests import FileDigests

TO_BE_DRAWN = ("train", "")  # values of a split column
LINE_BREAKS = pa.csv.ParseOptions(newlines_in_values=True)  # line breaks within quotes


class Table(ImageSource):
    """One table, and a second one if the test set has its own. A uri is `rows:` or `test:` and a path or row number."""

    def __init__(self, settings: TableSource, cache: Path) -> None:
        self.settings, self.cache = settings, cache

    def __reduce__(self) -> tuple[type["Table"], tuple[TableSource, Path]]:
        return type(self), (self.settings, self.cache)

    @cached_property
    def _files(self) -> dict[str, Path]:
        expected = "a CSV or Parquet file"
        files = {"rows": regular(self.settings.path, "the table", expected)}
        if self.settings.test_path is not None:
            files["test"] = regular(self.settings.test_path, "the test table", expected)
        return files

    @cached_property
    def _tables(self) -> dict[str, pa.Table]:
        """Returns all columns except the images' bytes."""
        return {part: self._read(path) for part, path in self._files.items()}

    @cached_property
    def _places(self) -> Places:
        root = self.settings.root
        if root is not None:
            existing(root, "the root of the table's paths")
        return Places({part: root or path.parent for part, path in self._files.items()}, self.settings.max_file_mb)

    @cached_property
    def _blobs(self) -> dict[str, Blobs]:
        return {
            part: Blobs(path, self.settings.image, self.cache, self._places.most_bytes)
            for part, path in self._files.items()
            if self.settings.image not in self._tables[part].column_names
        }

    @property
    def _wanted(self) -> list[str]:
        asked = [self.settings.image, self.settings.label, self.settings.id, self.settings.split]
        return list(dict.fromkeys(name for name in asked if name is not None))

    def check(self) -> None:
        for path in self._files.values():
            _require(self._wanted, columns_of(path), path)
        self._places  # noqa: B018 - raises if the root does not exist

    def _read(self, path: Path) -> pa.Table:
        wanted = self._wanted
        if is_parquet(path):
            schema = _parquet_schema(path)
            _require(wanted, schema.names, path)
            if holds_bytes(schema.field(self.settings.image).type):
                wanted.remove(self.settings.image)
            with readable(path, "Parquet"):
                table = pq.read_table(path, columns=wanted)
        else:
            table = read_csv_columns(path, wanted)
        with readable(path, "a table"):  # a Parquet file may hold text that is not UTF-8
            texts = pa.table({name: as_text(table[name], name, path) for name in wanted})
            texts.validate(full=True)
        return texts

    def listing(self) -> Listing:
        parts = [self._part(part) for part in self._tables]
        ids, labels, splits, uris, errors = (
            pa.chunked_array(columns, pa.string()).combine_chunks() for columns in zip(*parts, strict=True)
        )
        return Listing(ids, labels, splits, uris, errors, notes=self.notes)

    @property
    def notes(self) -> tuple[str, ...]:
        labels = pc.unique(_labels(self._tables["rows"][self.settings.label]))
        return lookalikes([name for name in labels.to_pylist() if name is not None])

    def _part(self, part: str) -> tuple[pa.Array, ...]:
        table, settings = self._tables[part], self.settings
        errors: pa.Array = pa.nulls(len(table), pa.string())
        if settings.image in table.column_names:
            root = self._places.roots[part]
            found = [below(root, name or "") for name in table[settings.image].to_pylist()]
            names = pa.array([name for name, _ in found], pa.string())
            errors = pa.array([error for _, error in found], pa.string())
        else:
            names = pc.utf8_lpad(pa.array(np.arange(len(table))).cast(pa.string()), 9, "0")
        ids = names if part == "rows" else pc.binary_join_element_wise("test/", names, "")
        if settings.id is not None:
            ids = table[settings.id].combine_chunks()
            if ids.null_count:
                raise DataError(
                    f"{ids.null_count} rows of {self._files[part].name} have no '{settings.id}'; ids must be whole"
                )
        splits = pa.nulls(len(table), pa.string())
        if part == "test":
            splits = pa.array(["test"]).take(pa.array(np.zeros(len(table), np.int32)))
        elif settings.split is not None:
            splits = _splits(table[settings.split], settings.split)
        uris = pc.binary_join_element_wise(f"{part}:", names, "")
        return ids, _labels(table[settings.label]), splits, uris, errors

    def read(self, uri: str) -> bytes:
        part, _, row = uri.partition(":")
        return self._blobs[part].read(int(row)) if part in self._blobs else self._places.read(uri)

    def file_keys(self, listing: Listing, files: FileDigests) -> list[bytes | None] | None:
        if self._blobs:
            return None
        return self._places.digests(listing.uris.to_pylist(), listing.errors.to_pylist(), files)

    def fingerprint(self, files: FileDigests) -> str:
        digest = sha256()
        for part, path in self._files.items():
            digest.update(f"{part} {files.of(path.parent, [path.name])}\n".encode())
        if not self._blobs:
            digest.update(repr(self.file_keys(self.listing(), files)).encode())
        return digest.hexdigest()


def holds_bytes(kind: pa.DataType) -> bool:
    """Returns whether a column has images' bytes, plain or in a struct with a field `bytes`."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def is_parquet(path: Path) -> bool:
    """Returns whether a file is Parquet, by its name."""
    return path.suffix.lower() in {".parquet", ".pq"}


def columns_of(path: Path) -> list[str]:
    """Returns the names of the columns, from the start of the file."""
    if path.is_dir():
        raise DataError(f"the table {path} is a folder; expected a CSV or Parquet file")
    if is_parquet(path):
        return list(_parquet_schema(path).names)
    with readable(path, "CSV"), pa.csv.open_csv(path, parse_options=LINE_BREAKS) as reader:
        return list(reader.schema.names)


@contextlib.contextmanager
def readable(path: Path, format: str) -> Iterator[None]:
    """Turns Arrow's errors about damaged files, bytes that are not text, or wrong lengths into a DataError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise DataError(f"{path} cannot be read as {format}: {error}") from error


def _parquet_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise DataError(f"{path} is not a Parquet file ({error}); expected one by its name") from error


def read_csv_columns(path: Path, wanted: list[str]) -> pa.Table:
    """Reads columns as text, so that a label 007 stays 007, and removes the apostrophes that `csv_text` adds."""
    options = pa.csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False)
    with readable(path, "CSV"):
        table = pa.csv.read_csv(path, parse_options=LINE_BREAKS, convert_options=options)
        names = table.column_names
    _require(wanted, names, path)
    return pa.table(
        {name: pc.replace_substring_regex(table[name], f"^'({FORMULA})", r"\1", max_replacements=1) for name in wanted}
    )


def _require(wanted: list[str], there: list[str], path: Path) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise DataError(f"{path} has no column '{missing[0]}'.{nearest(missing[0], there)} Name it in data.source")
    for name in wanted:
        if (count := there.count(name)) > 1:
            raise DataError(f"{path} has {count} columns '{name}'; expected one. Rename the others")


def as_text(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """Converts a column of any plain type to text; whole numbers have no point, and empty text becomes null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise DataError(
                f"column '{name}' of {path} has fractions ({error}); expected names or whole numbers"
            ) from error
    try:
        text = column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise DataError(f"column '{name}' of {path} is {column.type}; expected text or whole numbers") from error
    text = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.equal(text, ""), None, text)


def _labels(column: pa.ChunkedArray) -> pa.Array:
    """Returns labels as text; an empty label or a negative number becomes null.

    '3.0' becomes '3': a column of whole numbers with gaps is often written this way."""
    text = column.combine_chunks()
    present = pc.drop_null(pc.unique(text))
    if len(present) and pc.all(pc.match_substring_regex(present, r"^-?\d+(\.0)?$")).as_py():
        text = pc.replace_substring_regex(text, r"\.0$", "")
        text = pc.if_else(pc.starts_with(text, "-"), None, text)
    return text


def _splits(column: pa.ChunkedArray, name: str) -> pa.Array:
    strange = [value for value in pc.unique(column).to_pylist() if value not in (None, *SPLITS, *TO_BE_DRAWN)]
    if strange:
        raise DataError(f"column '{name}' says '{strange[0]}'.{nearest(strange[0], [*SPLITS, 'train'])}")
    known = pc.is_in(column, pa.array(SPLITS))
    return pc.if_else(known, column, None).combine_chunks()
