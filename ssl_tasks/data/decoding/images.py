"""Pixels by name: from the decoded cache where it holds them, else read and decoded on the fly."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from selftrain.ssl_tasks.data.decoding.decode import Decoder, quiet_decoding
from selftrain.ssl_tasks.data.decoding.decoded import DecodedCache
from selftrain.ssl_tasks.data.decoding.sweep import cache_limit, chunk_size, chunks, decode_uri, look
from selftrain.ssl_tasks.data.sources.base import DrawnSource, ImageSource
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.settings.runtime import RuntimeSettings
from selftrain.ssl_tasks.store.locks import file_lock

Column = Callable[[np.ndarray], Sequence[str]]  # positions → uris, or contents


@dataclass(frozen=True)
class Kept:
    """Where the cache keeps some images: a row of the pixel file for each, -1 where it does not."""

    rows: np.ndarray
    pixels: Path | None

    @cached_property
    def stop(self) -> int:
        """How long the pixel file must be: it may have grown since it was mapped."""
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
        """Whether the decoded cache is in use."""
        return cache_limit(self.runtime) > 0 and not isinstance(self.source, DrawnSource)

    def find(self, contents: Sequence[str]) -> Kept:
        """Where the cache keeps the images of these contents."""
        raw = pa.py_buffer(bytes.fromhex("".join(contents)))
        names = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(contents), [None, raw])
        index = DecodedCache(self.cache, self.decoder).index()
        return Kept(index.rows_of(names), index.pixels)

    def keep(self, count: int, contents: Callable[[], Sequence[str]], uris: Column) -> Kept:
        """Where the cache keeps `count` images, after decoding what it lost, once for all processes."""
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
        """uint8 [n, S, S, C]: the images of `index`, an index into `kept`; DataError where one was changed."""
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
        """The rows of the pixel file; None where there is none, or no longer. Threads share what one has mapped."""
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
            raise DataError(f"{uri} could be read when the data set was made, and cannot now: {image.error}")
        if image.content.hex() != content:
            raise DataError(
                f"{uri} has changed since the data set was made; run again. If its file is the same, this machine's "
                "Pillow decodes it otherwise: then `selftrain rerun <run> dataset` makes the data set anew"
            )
        return image.pixels

    def _fitted(self, drawn: np.ndarray) -> np.ndarray:
        size, channels = self.decoder.image_size, self.decoder.channels
        if drawn.shape[1:] == (size, size, channels):
            return drawn
        fitted = [self.decoder(image).pixels for image in drawn]
        return np.stack([image for image in fitted if image is not None])
