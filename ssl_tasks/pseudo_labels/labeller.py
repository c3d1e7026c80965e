"""Labels images with teachers, shard by shard: averages probabilities over views and teachers, and measures agreement.

Batches are decoded and augmented while the network computes.

A shard ends at the id with the smallest hash among those that may be last. So its end depends only on the ids near it,
and adding or removing an image changes the shard that holds it and rarely another one. The key of a shard is the digest
of the teacher, the samples and the settings: a finished shard is reused by every run. A shard gets its name when it is
complete, so a kill leaves no incomplete shard.
"""

import hashlib
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from selftrain.ssl_tasks.data.dataset import Pool
from selftrain.ssl_tasks.data.order import key_of
from selftrain.ssl_tasks.data.views.view import DRAWS, weak_view
from selftrain.ssl_tasks.errors import OutOfMemory, TrainingDiverged
from selftrain.ssl_tasks.settings.data import AugmentSettings
from selftrain.ssl_tasks.store.artifacts import digest_file, digest_json, write_atomically
from selftrain.ssl_tasks.trained.model import Trained

AUGMENT = AugmentSettings()  # the augmentation of weak and strong views
AHEAD = 2  # batches per thread

Views = list[NDArray[np.uint8]]


@dataclass
class Clock:
    """Measures the seconds that the main thread spends on, or waits for, each part of the work."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)

    def spent_on(self, part: str) -> None:
        """Adds the time since the last call to this part of the work."""
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now


@dataclass(frozen=True)
class Batches:
    """Makes views of images. A view depends on (seed, view, sample id), not on its batch."""

    batch_size: int
    views: int
    noise: bool
    flip: bool
    seed: int
    threads: int
    clock: Clock

    def __call__(self, pool: Pool, index: NDArray[np.int64], ids: Sequence[str]) -> Iterator[Views]:
        """Yields the views of the images at `index` with these ids, batch by batch: one array per view."""

        def load(start: int) -> Callable[[], Views]:
            stop = start + self.batch_size
            return lambda: self.views_of(pool.images(index[start:stop]), ids[start:stop])

        with ThreadPoolExecutor(self.threads, "decode") as threads:
            jobs = (load(start) for start in range(0, len(index), self.batch_size))
            for views in in_order(threads, jobs, AHEAD * self.threads):
                self.clock.spent_on("decoding")
                yield views
                self.clock.spent_on("network")

    def views_of(self, images: NDArray[np.uint8], ids: Sequence[str]) -> Views:
        """Returns the images and weak views of them; with noise, only strong views."""
        if self.noise:
            return [self.strong(images, ids, view) for view in range(self.views)]
        return [images, *(self.weak(images, ids, view) for view in range(1, self.views))]

    def weak(self, images: NDArray[np.uint8], ids: Sequence[str], view: int) -> NDArray[np.uint8]:
        """Returns the weak view: flipped and shifted."""
        return weak_view(images, spread(ids, self.seed, f"view-{view}", DRAWS), self.flip, AUGMENT.crop_padding)

    def strong(self, images: NDArray[np.uint8], ids: Sequence[str], view: int) -> NDArray[np.uint8]:
        """Returns the strong view, as a student sees it."""
        from selftrain.ssl_tasks.data.views.randaugment import (  # importing albumentations takes a second
            randaugment_draws,
            randaugment_view,
        )

        draws = spread(ids, self.seed, f"noise-{view}", randaugment_draws(AUGMENT))
        return randaugment_view(self.weak(images, ids, view), draws, AUGMENT)


def in_order(threads: ThreadPoolExecutor, jobs: Iterator[Callable[[], Views]], ahead: int) -> Iterator[Views]:
    """Yields the results in the order of the jobs, a few of which run in advance."""
    waiting: deque[Future[Views]] = deque()
    for job in jobs:
        waiting.append(threads.submit(job))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Opinion:
    """The predictions of all teachers for n images, on the teachers' device."""

    alone: Tensor  # [members × views, n, K] log-probabilities of each teacher and view
    features: Tensor  # [n, D] features of the first teacher's first view, of length 1
    temperatures: Tensor | None = None  # [members × views] if each is calibrated before averaging

    @cached_property
    def log_probs(self) -> Tensor:
        """Returns [n, K]: the logarithm of the averaged probabilities."""
        if self.temperatures is not None:
            calibrated = torch.log_softmax(self.alone / self.temperatures[:, None, None].to(self.alone), dim=2)
        else:
            calibrated = self.alone
        if len(calibrated) == 1:
            return calibrated[0]
        return torch.logsumexp(calibrated, dim=0) - float(np.log(len(calibrated)))

    @property
    def votes(self) -> Tensor:
        """Returns [members × views, n]: the class that each teacher and view predicts."""
        return self.alone.argmax(dim=2)

    @classmethod
    def joined(cls, parts: Sequence["Opinion"]) -> "Opinion":
        """Returns the predictions of all batches as one."""
        return cls(
            torch.cat([part.alone for part in parts], dim=1),
            torch.cat([part.features for part in parts]),
            parts[0].temperatures,
        )


class Labeller:
    """Computes the predictions of one or several teachers, in evaluation mode and without noise."""

    def __init__(self, teachers: Sequence[Trained], batch_size: int) -> None:
        self.teachers = teachers
        # On a CPU, oneDNN keeps compiled kernels of some MB for every batch size, so few sizes are used.
        self.multiple = max(1, batch_size // 8)
        self.temperatures: Tensor | None = None  # of each teacher and view
        self._features: Tensor | None = None
        for teacher in teachers[:1]:
            teacher.network.head.register_forward_pre_hook(self._remember)

    def _remember(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0]

    def nothing(self, views: int) -> Opinion:
        """Returns the predictions for no image."""
        network, device = self.teachers[0].network, self.teachers[0].device
        alone = torch.empty(len(self.teachers) * views, 0, network.head.out_features, device=device)
        return Opinion(alone, torch.empty(0, network.num_features, device=device), self.temperatures)

    @torch.inference_mode()
    def opinion(self, views: Sequence[NDArray[np.uint8]], stored: Sequence[NDArray[np.float16] | None] = ()) -> Opinion:
        """Returns the predictions for one batch of images, given as one array per view, the unchanged images first.

        A teacher needs no view if its features of these images are given in `stored`.
        """
        stored = stored or [None] * len(self.teachers)
        count = len(views[0]) if views else next(len(one) for one in stored if one is not None)
        padded = [pad(images, self.multiple) for images in views]
        said, features = [], None
        try:
            for teacher, vectors in zip(self.teachers, stored, strict=True):
                inputs = padded if vectors is None else [vectors]
                logits_of = teacher.logits if vectors is None else teacher.logits_of
                for one in inputs:
                    said.append(torch.log_softmax(logits_of(one)[:count], dim=1))
                    features = self._features if features is None else features
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"{count} images per batch need too much memory. Lower predict.batch_size") from error
        assert features is not None
        found = Opinion(torch.stack(said), nn.functional.normalize(features[:count].float(), dim=1), self.temperatures)
        if not bool(torch.isfinite(found.log_probs.max(dim=1).values).all()):
            raise TrainingDiverged("a teacher's outputs are not numbers; train it again with a lower learning rate")
        return found


def pad(images: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """Repeats the last image until the number of images is a multiple."""
    missing = -len(images) % multiple
    return np.concatenate([images, images[-1:].repeat(missing, axis=0)]) if missing else images


@torch.inference_mode()
def judge(opinion: Opinion, temperature: float, stored: int, class_means: Tensor) -> Columns:
    """Returns the table's columns; `probs` (and `classes`) are the `stored` largest, or all in class order."""
    log_probs = torch.log_softmax(opinion.log_probs / temperature, dim=1)
    probs = log_probs.exp()
    num_classes = probs.shape[1]
    best, classes = probs.topk(min(max(stored if stored < num_classes else 2, 2), num_classes), dim=1)
    label = classes[:, 0]
    second = best[:, 1] if num_classes > 1 else torch.zeros_like(best[:, 0])
    columns = {
        "label": label.int(),
        "confidence": best[:, 0],
        "margin": best[:, 0] - second,
        "entropy": torch.special.entr(probs).sum(dim=1),
        "view_agreement": (opinion.votes == label).float().mean(dim=0),
        "feature_distance": 1 - (opinion.features * class_means[label]).sum(dim=1),
        "probs": (probs if stored == num_classes else best[:, :stored]).half(),
    }
    if stored < num_classes:
        columns["classes"] = classes[:, :stored].short()
    return {name: column.cpu().numpy() for name, column in columns.items()}


def class_means(features: Tensor, labels: NDArray[np.int64], num_classes: int) -> Tensor:
    """Returns [K, D]: the mean direction of each class's features; NaN for a class without images."""
    means = torch.full((num_classes, features.shape[1]), float("nan"), device=features.device)
    index = torch.from_numpy(labels).to(features.device)
    for label in np.unique(labels):
        means[label] = nn.functional.normalize(features[index == int(label)].mean(dim=0), dim=0)
    return means


def cut(sample_ids: Iterable[str], most: int) -> list[tuple[int, int]]:
    """Returns ranges of consecutive samples: at most `most` each and, except the last, at least half of that."""
    keys = np.fromiter((key_of("shard", sample) for sample in sample_ids), np.uint64)
    least, ranges, start = (most + 1) // 2, [], 0
    while len(keys) - start > most:
        may_be_last = keys[start + least - 1 : start + most]
        stop = start + least + int(np.argmin(may_be_last))
        ranges.append((start, stop))
        start = stop
    return [*ranges, (start, len(keys))] if start < len(keys) else ranges


def shard_key(question: Mapping[str, Any], sample_ids: Sequence[str], contents: Sequence[str]) -> str:
    """Returns the key of a shard: the digest of its teachers, settings and images."""
    samples = hashlib.sha256()
    for sample, content in zip(sample_ids, contents, strict=True):
        samples.update(f"{len(sample)}:{sample}{content}\n".encode())
    return digest_json({**question, "samples": samples.hexdigest()})


@dataclass(frozen=True)
class Shard:
    """A shard of the table: its number, its images [first, stop) of the unlabelled pool, and its key."""

    number: int
    first: int
    stop: int
    key: str

    @property
    def rows(self) -> int:
        return self.stop - self.first


def shard_file(number: int) -> str:
    """Returns a shard's file name in the artifact."""
    return f"part-{number:05d}.parquet"


@dataclass(frozen=True)
class ShardCache:
    """The finished shards of all runs of a workspace. Any of them may be deleted; it is then recomputed."""

    folder: Path

    def path(self, key: str) -> Path:
        """Returns the path of a shard, whether it exists or not."""
        return self.folder / key[:2] / f"{key}.parquet"

    def find(self, key: str) -> Path | None:
        """Returns the shard if it is intact; removes a damaged one."""
        path = self.path(key)
        digest = path.with_suffix(".sha256")
        if not path.exists() or not digest.exists():
            return None
        if digest_file(path).encode() == digest.read_bytes():
            return path
        path.unlink()
        return None

    def put(self, key: str, content: bytes) -> Path:
        """Stores a shard. Its digest is written first, so a file under the final name is complete and has a digest."""
        path = self.path(key)
        write_atomically(path.with_suffix(".sha256"), hashlib.sha256(content).hexdigest())
        write_atomically(path, content)
        return path


def place(source: Path, target: Path) -> None:
    """Puts a shard into the artifact: as a hard link if the file system allows it, else as a copy."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def spread(keys: Sequence[str], seed: int, name: str, width: int) -> NDArray[np.float64]:
    """Returns [n, width] numbers in [0, 1) that depend only on (seed, name, key), not on the rest of the batch."""
    drawn = b"".join(
        hashlib.blake2b(f"{seed}\x1f{name}\x1f{key}".encode(), digest_size=8 * width).digest() for key in keys
    )
    bits = np.frombuffer(drawn, np.uint64).reshape(len(keys), width) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
