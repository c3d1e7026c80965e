"""Images for a teacher, batch by batch: decoded, and drawn as weak or strong views, while the network computes."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from selftrain.ssl_tasks.data.dataset import Pool
from selftrain.ssl_tasks.data.views.weak import DRAWS, weak_view
from selftrain.ssl_tasks.pseudo_labels.predicting.shards import spread
from selftrain.ssl_tasks.settings.data import AugmentSettings

AUGMENT = AugmentSettings()  # what weak and strong views are
AHEAD = 2  # batches for each thread

Views = list[NDArray[np.uint8]]


@dataclass
class Clock:
    """Seconds that the main thread spends on, or waits for, each part of the work."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)

    def spent_on(self, part: str) -> None:
        """What passed since the last call was this."""
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now


@dataclass(frozen=True)
class Batches:
    """How images become views. A view depends on (seed, view, sample id), not on the batch it is in."""

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
        """What a student sees."""
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
