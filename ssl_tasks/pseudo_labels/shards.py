"""Shards: where one ends and the next begins, what names their contents, and how they are kept.

A shard's end depends on the ids near it alone, not on how many images come before: it is the id with the smallest hash
among those that may be last. So an image that is added or removed changes the shard that it is in and, but for a small
chance, no other. A shard's name is the digest of the teacher, of its samples and of the settings: the same question is
answered once, by whichever run asks it first, and an answer that a kill interrupted has no name yet.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selftrain.ssl_tasks.data.order import key_of
from selftrain.ssl_tasks.store.artifacts import digest_file, digest_json, write_atomically


def cut(sample_ids: Iterable[str], most: int) -> list[tuple[int, int]]:
    """Ranges of consecutive samples, each of at most `most` and, but for the last, at least half of that."""
    keys = np.fromiter((key_of("shard", sample) for sample in sample_ids), np.uint64)
    least, ranges, start = (most + 1) // 2, [], 0
    while len(keys) - start > most:
        may_be_last = keys[start + least - 1 : start + most]
        stop = start + least + int(np.argmin(may_be_last))
        ranges.append((start, stop))
        start = stop
    return [*ranges, (start, len(keys))] if start < len(keys) else ranges


def shard_key(question: Mapping[str, Any], sample_ids: Sequence[str], contents: Sequence[str]) -> str:
    """The name of the answer: what is asked (teachers, settings), of which images."""
    samples = hashlib.sha256()
    for sample, content in zip(sample_ids, contents, strict=True):
        samples.update(f"{len(sample)}:{sample}{content}\n".encode())
    return digest_json({**question, "samples": samples.hexdigest()})


@dataclass(frozen=True)
class Shard:
    """Images [first, stop) of the unlabelled pool; which shard of the table, and the name of its answer."""

    number: int
    first: int
    stop: int
    key: str

    @property
    def rows(self) -> int:
        return self.stop - self.first


def shard_file(number: int) -> str:
    """A shard's name in the artifact."""
    return f"part-{number:05d}.parquet"


@dataclass(frozen=True)
class ShardCache:
    """Finished shards of all runs of a workspace; any of them may be deleted, and is then computed again."""

    folder: Path

    def path(self, key: str) -> Path:
        """Returns the path of a shard, whether it exists or not."""
        return self.folder / key[:2] / f"{key}.parquet"

    def find(self, key: str) -> Path | None:
        """The shard if it is whole; one with other bytes than were written is removed."""
        path = self.path(key)
        digest = path.with_suffix(".sha256")
        if not path.exists() or not digest.exists():
            return None
        if digest_file(path).encode() == digest.read_bytes():
            return path
        path.unlink()
        return None

    def put(self, key: str, content: bytes) -> Path:
        """Keeps a shard. Its digest is written first: a file under the final name is whole and has one."""
        path = self.path(key)
        write_atomically(path.with_suffix(".sha256"), hashlib.sha256(content).hexdigest())
        write_atomically(path, content)
        return path


def place(source: Path, target: Path) -> None:
    """The shard under its name in the artifact: a second name of the same file where the file system can."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def spread(keys: Sequence[str], seed: int, name: str, width: int) -> NDArray[np.float64]:
    """[n, width] numbers in [0, 1) that (seed, name, key) alone decide, whatever else is in the batch."""
    drawn = b"".join(
        hashlib.blake2b(f"{seed}\x1f{name}\x1f{key}".encode(), digest_size=8 * width).digest() for key in keys
    )
    bits = np.frombuffer(drawn, np.uint64).reshape(len(keys), width) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
