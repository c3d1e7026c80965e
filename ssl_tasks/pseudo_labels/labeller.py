"""Labels images with teachers: probabilities averaged over views and members, with the agreement between them.

Batches are decoded and drawn as weak or strong views while the network computes.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from selftrain.ssl_tasks.data.dataset import Pool
from selftrain.ssl_tasks.data.views.view import DRAWS, weak_view
from selftrain.ssl_tasks.errors import OutOfMemory, TrainingDiverged
from selftrain.ssl_tasks.pseudo_labels.shards import spread
from selftrain.ssl_tasks.settings.data import AugmentSettings
from selftrain.ssl_tasks.trained.model import Trained

AUGMENT = AugmentSettings()  # what weak and strong views are
AHEAD = 2  # batches for each thread

Views = list[NDArray[np.uint8]]


@dataclass
class Clock:
    """Seconds that the main thread spends on, or waits for, each part of the work."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)

    def spent_on(self, part: str) -> None:
        """Adds the time since the last call to this kind of work."""
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
        """The views of the images `index`, called `ids`; one array a view, the images themselves first."""

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
        """The images, and weak views of them; with noise, strong views alone."""
        if self.noise:
            return [self.strong(images, ids, view) for view in range(self.views)]
        return [images, *(self.weak(images, ids, view) for view in range(1, self.views))]

    def weak(self, images: NDArray[np.uint8], ids: Sequence[str], view: int) -> NDArray[np.uint8]:
        """Flipped and shifted."""
        return weak_view(images, spread(ids, self.seed, f"view-{view}", DRAWS), self.flip, AUGMENT.crop_padding)

    def strong(self, images: NDArray[np.uint8], ids: Sequence[str], view: int) -> NDArray[np.uint8]:
        """Returns the strong view, as a student sees it."""
        from selftrain.ssl_tasks.data.views.randaugment import (  # albumentations: a second
            randaugment_draws,
            randaugment_view,
        )

        draws = spread(ids, self.seed, f"noise-{view}", randaugment_draws(AUGMENT))
        return randaugment_view(self.weak(images, ids, view), draws, AUGMENT)


def in_order(threads: ThreadPoolExecutor, jobs: Iterator[Callable[[], Views]], ahead: int) -> Iterator[Views]:
    """Results in the order of the jobs, a few of which are done in advance."""
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
    """Of n images, on the teachers' device."""

    log_probs: Tensor  # [n, K] of the averaged probabilities
    votes: Tensor  # [members × views, n] what each says by itself
    features: Tensor  # [n, D] of the first teacher's first view, of length 1

    @classmethod
    def joined(cls, parts: Sequence["Opinion"]) -> "Opinion":
        """Of all batches' images."""
        return cls(
            torch.cat([part.log_probs for part in parts]),
            torch.cat([part.votes for part in parts], dim=1),
            torch.cat([part.features for part in parts]),
        )


class Labeller:
    """One teacher or several, in evaluation mode and without noise."""

    def __init__(self, teachers: Sequence[Trained], batch_size: int) -> None:
        self.teachers = teachers
        # On a CPU, oneDNN keeps compiled kernels for every batch size it meets, some MB each: it should see few.
        self.multiple = max(1, batch_size // 8)
        self._features: Tensor | None = None
        for teacher in teachers[:1]:
            teacher.network.head.register_forward_pre_hook(self._remember)

    def _remember(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0]

    def nothing(self, views: int) -> Opinion:
        """Of no image."""
        network, device = self.teachers[0].network, self.teachers[0].device
        votes = torch.empty(len(self.teachers) * views, 0, dtype=torch.int64, device=device)
        logits = torch.empty(0, network.head.out_features, device=device)
        return Opinion(logits, votes, torch.empty(0, network.num_features, device=device))

    @torch.inference_mode()
    def opinion(self, views: Sequence[NDArray[np.uint8]]) -> Opinion:
        """Of one batch of images, given as one array a view; the first is the images as they are."""
        count, padded = len(views[0]), [pad(images, self.multiple) for images in views]
        try:
            said, features = [], None
            for teacher in self.teachers:
                for images in padded:
                    said.append(torch.log_softmax(teacher.logits(images)[:count], dim=1))
                    features = self._features if features is None else features
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"{len(views[0])} images per batch need too much memory. Lower predict.batch_size"
            ) from error
        assert features is not None
        alone = torch.stack(said)
        together = torch.logsumexp(alone, dim=0) - float(np.log(len(said))) if len(said) > 1 else alone[0]
        if not bool(torch.isfinite(together.max(dim=1).values).all()):
            raise TrainingDiverged("a teacher's outputs are not numbers; train it again with a lower learning rate")
        return Opinion(together, alone.argmax(dim=2), nn.functional.normalize(features[:count].float(), dim=1))


def pad(images: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """The images, the last one repeated until their number is a multiple."""
    missing = -len(images) % multiple
    return np.concatenate([images, images[-1:].repeat(missing, axis=0)]) if missing else images


@torch.inference_mode()
def judge(opinion: Opinion, temperature: float, stored: int, class_means: Tensor) -> Columns:
    """The numbers of the table's columns; `probs` (and `classes`) are the `stored` largest, or all in class order."""
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
    """[K, D]: where each class lies on the sphere of features; NaN for a class without images."""
    means = torch.full((num_classes, features.shape[1]), float("nan"), device=features.device)
    index = torch.from_numpy(labels).to(features.device)
    for label in np.unique(labels):
        means[label] = nn.functional.normalize(features[index == int(label)].mean(dim=0), dim=0)
    return means
