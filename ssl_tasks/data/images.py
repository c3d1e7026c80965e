"""Reads the images of a source: all of them in one sweep, which fills the cache of decoded images, or single ones.

A sweep decodes with several processes and remembers what it saw. Images that the cache does not hold are read and
decoded on the fly.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selftrain.ssl_tasks.data.decode import Decoded, Decoder, quiet_decoding, reason
from selftrain.ssl_tasks.data.decoded import DecodedCache
from selftrain.ssl_tasks.data.sources.base import DrawnSource, ImageSource, Listing
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.file_digests import FileDigests
from selftrain.ssl_tasks.store.locks import file_lock

CHUNK_BYTES = 64 << 20  # decoded pixels held at a time
CHUNK_UNKEPT = 8192  # images at a time if their pixels are not cached
TASK = 32  # images a thread takes at a time
In = TypeVar("In")
Out = TypeVar("Out")


Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, what: str) -> None:
    """Ignores progress."""


@dataclass(frozen=True)
class Swept:
    """The results of a sweep, sample by sample."""

    contents: pa.Array  # string (hex), null where unreadable
    groups: np.ndarray  # int64: equal where contents are equal, -1 where unreadable
    width: pa.Array
    height: pa.Array
    mode: pa.Array
    errors: pa.Array  # string, null where readable
    decoded: int = 0  # images decoded now; the others were known


def sweep(
    source: ImageSource,
    listing: Listing,
    decoder: Decoder,
    files: FileDigests,
    cache: Path,
    runtime: RuntimeSettings,
    progress: Progress = silent,
) -> Swept:
    """Finds content, size and mode of every image; images that the cache knows by their bytes are not decoded again."""
    if isinstance(source, DrawnSource):
        return _named(source, listing, files)
    store, limit = DecodedCache(cache, decoder), cache_limit(runtime)
    file_keys = source.file_keys(listing, files)
    parts: list[dict[str, pa.Array]] = []
    decoded = start = 0
    with quiet_decoding(), ThreadPoolExecutor(runtime.threads or os.cpu_count()) as threads:
        while start < len(listing):
            keep = (store.index().rows + 1) * store.row_bytes <= limit
            stop = start + (chunk_size(store) if keep else CHUNK_UNKEPT)
            chunk = slice(start, stop)
            uris, errors = listing.uris[chunk].to_pylist(), listing.errors[chunk].to_pylist()
            keys = file_keys[chunk] if file_keys is not None else None
            images, count = look(source, decoder, store, uris, limit if keep else 0.0, threads, keys, errors)
            parts.append(_columns(images))
            decoded, start = decoded + count, stop
            progress(min(stop, len(listing)), len(listing), "images")
    whole = {name: pa.chunked_array([part[name] for part in parts]).combine_chunks() for name in parts[0]}
    groups = pc.fill_null(whole["contents"].dictionary_encode().indices, -1).to_numpy().astype(np.int64)
    return Swept(groups=groups, decoded=decoded, **whole)


def cache_limit(runtime: RuntimeSettings) -> float:
    """Returns the limit, in bytes, of the decoded images of one size on disk."""
    return runtime.cache_gb * 1e9 if runtime.cache == "auto" else 0.0


def chunk_size(store: DecodedCache) -> int:
    """Returns the number of images that are decoded before their pixels are written."""
    return max(TASK, CHUNK_BYTES // store.row_bytes)


def look(
    source: ImageSource,
    decoder: Decoder,
    store: DecodedCache,
    uris: Sequence[str],
    limit: float,
    threads: Executor,
    keys: Sequence[bytes | None] | None = None,
    errors: Sequence[str | None] | None = None,
) -> tuple[list[Decoded], int]:
    """Returns the contents of some images, and how many were decoded; the cache may know the others by their bytes."""

    def key_of(at: int) -> bytes | Decoded:
        if errors is not None and (error := errors[at]):
            return Decoded(error=error)
        return (keys[at] if keys is not None else None) or read_key(source, uris[at])

    def decode(at: int) -> tuple[bytes, Decoded]:
        key, image = decode_uri(source, decoder, uris[at])
        return key, image if limit else replace(image, pixels=None)

    named = in_threads(threads, key_of, range(len(uris)))
    images = [name if isinstance(name, Decoded) else None for name in named]
    known = store.known([name if isinstance(name, bytes) else None for name in named], bool(limit))
    images = [image or old for image, old in zip(images, known, strict=True)]
    unknown = [at for at, image in enumerate(images) if image is None]
    fresh = in_threads(threads, decode, unknown)
    store.append(fresh, limit)
    for at, (_, image) in zip(unknown, fresh, strict=True):
        images[at] = image
    return [image for image in images if image is not None], len(unknown)


def read_key(source: ImageSource, uri: str) -> bytes | Decoded:
    """Returns the digest of an image file's bytes, or why it cannot be read."""
    try:
        return _digest(source.read(uri))
    except OSError as error:
        return Decoded(error=reason(error))


def decode_uri(source: ImageSource, decoder: Decoder, uri: str) -> tuple[bytes, Decoded]:
    """Reads and decodes one image; returns it with the digest of its bytes."""
    try:
        data = source.read(uri)
    except OSError as error:
        return b"", Decoded(error=reason(error))
    return _digest(data), decoder(data)


def _digest(data: bytes | np.ndarray) -> bytes:
    if isinstance(data, np.ndarray):
        return hashlib.sha256(f"{data.shape} ".encode() + data.tobytes()).digest()
    return hashlib.sha256(data).digest()


def in_threads(threads: Executor, work: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
    """Applies `work` to every item in order, several per task, because single small images would not be worth a
    task."""
    tasks = threads.map(lambda task: [work(item) for item in task], chunks(items, TASK))
    return [result for results in tasks for result in results]


def chunks(items: Sequence[In], size: int) -> Iterator[Sequence[In]]:
    """Yields `items` in order, `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _columns(images: Sequence[Decoded]) -> dict[str, pa.Array]:
    return {
        "contents": pa.array([image.content.hex() if image.content else None for image in images], pa.string()),
        "width": pa.array([image.width for image in images], pa.int32()),
        "height": pa.array([image.height for image in images], pa.int32()),
        "mode": pa.array([image.mode for image in images], pa.string()),
        "errors": pa.array([image.error for image in images], pa.string()),
    }


def _named(source: DrawnSource, listing: Listing, files: FileDigests) -> Swept:
    """Describes drawn images by their names, without drawing them: different names mean different images."""
    assert source.shape is not None
    size, channels = source.shape
    state = hashlib.sha256(source.fingerprint(files).encode())

    def name(uri: str) -> str:
        named = state.copy()
        named.update(uri.encode())
        return named.hexdigest()[:32]

    n = len(listing)
    slices = (listing.uris[start : start + CHUNK_UNKEPT].to_pylist() for start in range(0, n, CHUNK_UNKEPT))
    return Swept(
        contents=pa.chunked_array([pa.array([name(uri) for uri in uris]) for uris in slices]).combine_chunks(),
        groups=np.arange(n),
        width=pa.array(np.full(n, size, np.int32)),
        height=pa.array(np.full(n, size, np.int32)),
        mode=pa.array(["L" if channels == 1 else "RGB"]).take(pa.array(np.zeros(n, np.int32))),
        errors=pa.nulls(n, pa.string()),
    )


Column = Callable[[np.ndarray], Sequence[str]]  # positions → uris, or contents


@dataclass(frozen=True)
class Kept:
    """The places of images in the cache: a row of the pixel file for each, or -1."""

    rows: np.ndarray
    pixels: Path | None

    @cached_property
    def stop(self) -> int:
        """Returns the length that the pixel file must have; it may have grown since it was mapped."""
        return int(self.rows.max(initial=-1)) + 1


class Images:
    """Reads images of one source. Picklable; a process maps the cache once, at its first image."""

    def __init__(self, source: ImageSource, decoder: Decoder, cache: Path, runtime: RuntimeSettings) -> None:
        self.source, self.decoder, self.cache, self.runtime = source, decoder, cache, runtime
        self._mapped: tuple[Path | None, np.ndarray] = None, np.empty(0, np.uint8)

    def __reduce__(self) -> tuple[type["Images"], tuple[ImageSource, Decoder, Path, RuntimeSettings]]:
        return type(self), (self.source, self.decoder, self.cache, self.runtime)

    @property
    def cached(self) -> bool:
        """Returns whether the decoded cache is in use."""
        return cache_limit(self.runtime) > 0 and not isinstance(self.source, DrawnSource)

    def find(self, contents: Sequence[str]) -> Kept:
        """Returns the places in the cache of images with these contents."""
        raw = pa.py_buffer(bytes.fromhex("".join(contents)))
        names = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(contents), [None, raw])
        index = DecodedCache(self.cache, self.decoder).index()
        return Kept(index.rows_of(names), index.pixels)

    def keep(self, count: int, contents: Callable[[], Sequence[str]], uris: Column) -> Kept:
        """Returns the places of `count` images in the cache; missing ones are decoded first, once for all processes."""
        if not self.cached:
            return Kept(np.broadcast_to(np.int64(-1), count), None)
        names = contents()
        kept = self.find(names)
        if not (kept.rows < 0).any():
            return kept
        store, limit = DecodedCache(self.cache, self.decoder), cache_limit(self.runtime)
        with file_lock(store.folder.parent / f"{store.folder.name}.refill.lock"):
            missing = np.flatnonzero(self.find(names).rows < 0)
            room = max(0, int(limit // store.row_bytes) - store.index().rows)
            wanted = uris(missing[:room]) if len(missing) and room else ()
            with quiet_decoding(), ThreadPoolExecutor(self.runtime.threads) as threads:
                for chunk in chunks(wanted, chunk_size(store)):
                    look(self.source, self.decoder, store, chunk, limit, threads)
        return self.find(names)

    def load(self, kept: Kept, index: np.ndarray, uris: Column, contents: Column) -> np.ndarray:
        """Returns uint8 [n, S, S, C]: the images of `index`, an index into `kept`; DataError if one was changed."""
        rows, mapped = kept.rows[index], self._map(kept)
        if mapped is not None and (rows >= 0).all():
            return mapped[rows]
        if isinstance(self.source, DrawnSource):
            return self._fitted(self.source.draw(uris(index)))
        size, channels = self.decoder.image_size, self.decoder.channels
        images = np.empty((len(index), size, size, channels), np.uint8)
        cached = rows >= 0 if mapped is not None else np.zeros(len(rows), bool)
        if mapped is not None:
            images[cached] = mapped[rows[cached]]
        elsewhere = np.flatnonzero(~cached)
        names, expected = uris(index[elsewhere]), contents(index[elsewhere])
        with quiet_decoding():
            for at, uri, content in zip(elsewhere, names, expected, strict=True):
                images[at] = self._decode(uri, content)
        return images

    def _map(self, kept: Kept) -> np.ndarray | None:
        """Returns the rows of the pixel file, shared by all threads; None if the file does not exist."""
        if kept.pixels is None:
            return None
        pixels, mapped = self._mapped
        if pixels != kept.pixels or len(mapped) < kept.stop:
            try:
                mapped = DecodedCache(self.cache, self.decoder).map(kept.pixels)
            except FileNotFoundError:
                return None
            self._mapped = kept.pixels, mapped
        return mapped

    def _decode(self, uri: str, content: str) -> np.ndarray:
        _, image = decode_uri(self.source, self.decoder, uri)
        if image.pixels is None:
            raise DataError(f"{uri} could be read when the data set was made, but not any more: {image.error}")
        if image.content.hex() != content:
            raise DataError(
                f"{uri} has changed since the data set was made; run the same command again. If the file is unchanged, "
                "this machine's Pillow decodes it differently. Then build the data set again: selftrain "
                "rerun RUN dataset"
            )
        return image.pixels

    def _fitted(self, drawn: np.ndarray) -> np.ndarray:
        size, channels = self.decoder.image_size, self.decoder.channels
        if drawn.shape[1:] == (size, size, channels):
            return drawn
        fitted = [self.decoder(image).pixels for image in drawn]
        return np.stack([image for image in fitted if image is not None])
