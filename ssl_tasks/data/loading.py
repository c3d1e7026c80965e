"""Loads batches from a stream to a device, with worker processes and pinned memory, and normalises them in one pass."""

import functools
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from selftrain.ssl_tasks.data.batch import Batch, View
from selftrain.ssl_tasks.data.stream import BatchStream, Images, LabeledPool
from selftrain.ssl_tasks.data.views.view import Draws
from selftrain.ssl_tasks.execution.startup import die_with


def start_worker(_: int, parent: int | None = None) -> None:
    """Prepares a worker process, which ends with its parent if the parent's main thread started it.

    The worker ignores the first signal to the process group: the parent needs batches until its checkpoint. A second
    SIGTERM comes from the parent, and ends a worker that hangs.
    """
    if parent is not None:
        die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def loader(stream: BatchStream, start: int, stop: int, workers: int = 0, pin_memory: bool = False) -> Iterator[Batch]:
    """Returns the batches of steps start … stop - 1; the number of workers changes only the speed."""
    if not workers and not pin_memory:
        return (stream[step] for step in range(start, stop))
    stream.prepare()
    parent = os.getpid() if threading.current_thread() is threading.main_thread() else None
    return iter(
        DataLoader(
            stream,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=functools.partial(start_worker, parent=parent),
            # A stage's process comes from a fork server. By default, loaders would come from a second server, which
            # imports everything again (seconds). Its loaders would outlive a killed stage: they watch the server, not
            # this process.
            multiprocessing_context="fork" if workers else None,
        )
    )


@functools.lru_cache(maxsize=16)
def row_scale(device: torch.device, mean: tuple[float, ...], std: tuple[float, ...], width: int) -> tuple[Tensor, ...]:
    """Returns the factors and terms of a row of pixels, transferred once because each transfer makes a GPU wait."""
    scale = [1 / (255 * value) for value in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    with torch.inference_mode(False):  # tensors made in inference mode could not be used outside it
        return tuple(torch.tensor(values, device=device).repeat(width) for values in (scale, shift))


def normalise(images: Tensor, device: torch.device, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Converts uint8 [n, H, W, C] to normalised float [n, C, H, W] in channels_last, after the transfer as bytes."""
    count, height, width, channels = images.shape
    scale, shift = row_scale(device, tuple(mean), tuple(std), width)
    rows = images.to(device, non_blocking=True).view(count * height, width * channels).float()
    torch.addcmul(shift, rows, scale, out=rows)  # whole rows: a loop over three channels is slow on a CPU
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


def to_device(batch: Batch, device: torch.device, mean: Sequence[float], std: Sequence[float]) -> Batch:
    """Returns the batch on the device, its images normalised."""

    def move(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.uint8:
            return normalise(tensor, device, mean, std)
        return tensor.to(device, non_blocking=True)

    return batch.map(move)


@dataclass(frozen=True)
class StreamPools:
    """Passes over the stream's pools in order (`selftrain.ssl_tasks.methods.base.Pools`), normalised like batches.

    `step` seeds the pass: augmented views differ from step to step, and are the same after a restart.
    """

    stream: BatchStream
    device: torch.device
    mean: Sequence[float]
    std: Sequence[float]
    batch_size: int = 256
    step: int = 0

    def labeled(self, view: View = "none") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields (index, images, labels) in pool order: the labelled images, then those that a selection adds."""
        for index, images in self._pass("labeled", self.stream.labeled, view):
            yield index, images, torch.from_numpy(self.stream.labeled.labels[index.cpu()]).to(self.device)

    def unlabeled(self, view: View = "none") -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (index, images) in pool order."""
        return self._pass("unlabeled", self.stream.unlabeled, view)

    def _pass(self, name: str, pool: Images | LabeledPool, view: View) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(pool), self.batch_size):
            stop = min(start + self.batch_size, len(pool))
            index = np.arange(start, stop)
            draws = Draws(start, stop, self.stream.seed, ("pass", name, self.step))
            images = torch.from_numpy(self.stream.augmenter.view(view, pool.images(index), draws))
            yield torch.from_numpy(index).to(self.device), normalise(images, self.device, self.mean, self.std)
