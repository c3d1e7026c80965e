"""Implements CTAugment (ReMixMatch, arXiv 1911.09785), which learns how strongly images can be changed.

An operation's range is cut into bins. Each bin has a rate: how well the network recognises images after this change.
Strong views draw operations and, for each, a bin whose rate is near the best. Probes draw any bin, and their match,
1 - ½ Σ|prediction - label|, updates the bin's rate (`Policy`).

There are two official codes. We draw as FixMatch's repository, the later one, does: a bin by its rate, then a level
anywhere in the bin. ReMixMatch's code draws one of 16 segments by the sum of the rates of two adjacent bins of 17, and
a level within the segment. But it writes scores to 17 bins, so a level's score reaches another bin than the one that
chose it. Its authors replaced that draw in FixMatch's code. FixMatch then cuts out a fixed square of half the side;
ReMixMatch does not (`cutout: 0`).

Operations and ranges are the official ones, except:
- translations reach .3 of the side, as in FixMatch's paper. In both codes it is .3 of a pixel, which moves nothing.
- `rescale` cuts off up to a quarter of the side all around, as in FixMatch's code; in ReMixMatch's it is .25 of a
  pixel. Its resampling filter, which the codes also choose by rates, is always bilinear.
- `posterize` has 17 bins and not 8 as in the codes; shears are about the middle of the image and not about a corner.

The workers that draw the views read the rates from shared memory (`Policy`). They build batches ahead of the training
step. So that a batch stays a pure function of its step, it uses the rates of a fixed earlier step: in period m (steps
m·REFRESH …), the rates at the beginning of period m - 1. The two newest tables are in shared memory; a worker that is
more than a period ahead waits. A resumed run continues with the rates in the checkpoint.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from selftrain.ssl_tasks.data.batch import Views
from selftrain.ssl_tasks.data.views import augmentation as change
from selftrain.ssl_tasks.data.views.augmentation import OPERATIONS, Bytes, blend
from selftrain.ssl_tasks.settings.data import AugmentSettings

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]
Rates = NDArray[np.float32]
BINS = 17
DECAY = 0.99
THRESHOLD = 0.8  # share of the best bin's rate below which a bin is not used
PER_OPERATION = 5  # uniform numbers per operation: which one, its bin, the level in the bin, and two for a place
Place = list[float]


@dataclass(frozen=True)
class Leveled:
    """An operation whose argument depends on a level in [0, 1)."""

    argument: Callable[[float], float]
    change: Callable[[Bytes, float, Place], Bytes]

    def __call__(self, image: Bytes, level: float, place: Place) -> Bytes:
        """Changes an image at a level."""
        return self.change(image, self.argument(level), place)


def cut_square(image: Bytes, share: float, place: Place) -> Bytes:
    """Cuts out a square whose side is a share of the image's, and fills it with grey."""
    return change.cutout(image, change.cutout_boxes(np.array([[1, *place]]), image.shape[0], share)[0])


def blended(apply: Callable[[Bytes], Bytes]) -> Leveled:
    """Returns an operation that blends the changed image into the image by the level."""
    return Leveled(lambda level: level, lambda image, share, _: blend(image, apply(image), share))


def enhanced(name: str) -> Leveled:
    """Returns an enhancement by a factor of .1 to 2."""
    apply = OPERATIONS[name].apply
    return Leveled(lambda level: 0.1 + 1.9 * level, lambda image, factor, _: apply(image, factor))


def signed(name: str, reach: float) -> Leveled:
    """Returns a movement by -reach to reach."""
    apply = OPERATIONS[name].apply
    return Leveled(lambda level: (2 * level - 1) * reach, lambda image, value, _: apply(image, value))


LEVELED: dict[str, Leveled] = {
    "identity": Leveled(lambda level: 0.0, lambda image, _, place: image),
    "autocontrast": blended(lambda image: change.autocontrast(image, 0)),
    "blur": Leveled(lambda level: level, lambda image, share, _: change.blur(image, share)),
    "brightness": enhanced("brightness"),
    "color": enhanced("color"),
    "contrast": enhanced("contrast"),
    "cutout": Leveled(lambda level: level / 2, cut_square),
    "equalize": blended(lambda image: change.equalize(image, 0)),
    "invert": blended(change.invert),
    "posterize": Leveled(lambda level: 1 + int(level * 8), lambda image, bits, _: change.posterize(image, bits)),
    "rescale": Leveled(lambda level: level / 4, lambda image, margin, _: change.magnify(image, margin)),
    "rotate": signed("rotate", 45),
    "sharpness": enhanced("sharpness"),
    "shear_x": signed("shear_x", 0.3),
    "shear_y": signed("shear_y", 0.3),
    "smooth": Leveled(lambda level: level, lambda image, share, _: change.sharpness(image, 1 - share)),
    "solarize": Leveled(lambda level: level, lambda image, threshold, _: change.solarize(image, threshold)),
    "translate_x": signed("translate_x", 0.3),
    "translate_y": signed("translate_y", 0.3),
}
TABLE = list(LEVELED.values())


@dataclass(frozen=True)
class Choice:
    """The operations of each image: [n, depth] operations, their bins and levels, and [n, depth, 2] places."""

    operations: Integers
    bins: Integers
    levels: Numbers
    places: Numbers

    def pairs(self) -> Integers:
        """Returns [n, depth, (operation, bin)]: the rates that the images update."""
        return np.stack([self.operations, self.bins], axis=2)


def fresh_rates() -> Rates:
    """Returns the first rates [operations, bins], which are equal for all bins."""
    return np.ones((len(TABLE), BINS), np.float32)


def draws(depth: int) -> int:
    """Returns the number of uniform numbers per image."""
    return PER_OPERATION * depth


def usable_shares(rates: Rates) -> Numbers:
    """Returns [operations, bins]: each bin's probability, proportional to its rate if near the best, else 0."""
    shares = rates.astype(np.float64) + (1 - DECAY)  # as in the official code, because all rates may be zero
    shares /= shares.max(axis=1, keepdims=True)
    shares[shares < THRESHOLD] = 0
    return shares / shares.sum(axis=1, keepdims=True)


def choose(rates: Rates | None, uniform: Numbers, depth: int) -> Choice:
    """Draws operations uniformly, and bins by rates or, without rates, uniformly; `uniform` is [n, draws(depth)]."""
    which, bin_draw, within, *place = (uniform[:, part * depth : (part + 1) * depth] for part in range(PER_OPERATION))
    operations = (which * len(TABLE)).astype(np.int64)
    shares = np.full((len(TABLE), BINS), 1 / BINS) if rates is None else usable_shares(rates)
    below = np.cumsum(shares, axis=1)[:, :-1]  # without the last bin, which absorbs rounding errors
    bins = (bin_draw[:, :, None] >= below[operations]).sum(axis=2)
    return Choice(operations, bins, (bins + within) / BINS, np.stack(place, axis=2))


def apply(images: Bytes, choice: Choice, boxes: change.Boxes | None = None) -> Bytes:
    """Applies a choice to uint8 [n, S, S, C]; with `boxes` [n, 4], a square is cut out at the end."""
    out = np.empty(images.shape, np.uint8)
    steps = zip(choice.operations.tolist(), choice.levels.tolist(), choice.places.tolist(), strict=True)
    for number, chosen in enumerate(steps):
        image = images[number]
        for which, level, place in zip(*chosen, strict=True):
            image = TABLE[which](image, level, place)
        out[number] = image if boxes is None else change.cutout(image, boxes[number])
    return out


REFRESH = 32  # steps: more than workers read ahead, much less than a rate needs to change
BLOCK = 1024  # scores that are applied at once


class PolicyBoard:
    """Tables of rates in shared memory, written by the trainer and read by its workers."""

    def __init__(self) -> None:
        self.tables = torch.from_numpy(np.stack([fresh_rates()] * 2)).share_memory_()
        self.version = torch.zeros(1, dtype=torch.int64).share_memory_()

    def at(self, step: int) -> NDArray[np.float32]:
        """Returns the rates that the batch of a step is drawn from."""
        wanted, parent = max(0, step // REFRESH - 1), os.getppid()
        while int(self.version) < wanted:
            if os.getppid() != parent:
                raise SystemExit("the process that trains is gone")
            time.sleep(0.001)
        return self.tables[wanted % 2].numpy()


class Policy(nn.Module):
    """The rates, updated by every step's probes on the device; only publishing a table waits for the device."""

    rates: Tensor
    published: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.board = PolicyBoard()
        self.register_buffer("rates", torch.from_numpy(fresh_rates()))
        self.register_buffer("published", self.board.tables.clone())

    def open(self, step: int) -> None:
        """Publishes the rates for the batches from `step` on."""
        self.board.tables.copy_(self.published)
        self.board.version.fill_(step // REFRESH)

    @torch.no_grad()
    def learn(self, done: int, choices: Tensor, scores: Tensor) -> None:
        """Updates the rates with a step's probes, choices [n, depth, 2] and scores [n]; `done` steps are finished."""
        cells = (choices[..., 0] * BINS + choices[..., 1]).flatten()
        repeated = scores.float().repeat_interleave(choices.shape[1])
        for part, score in zip(cells.split(BLOCK), repeated.split(BLOCK), strict=True):
            self.rates.copy_(moved_rates(self.rates, part, score))
        if done % REFRESH == 0:
            version = done // REFRESH
            self.published[version % 2] = self.rates
            self.board.tables[version % 2] = self.rates.cpu()
            self.board.version.fill_(version)


def moved_rates(rates: Tensor, cells: Tensor, scores: Tensor) -> Tensor:
    """Applies rate ← decay · rate + (1 - decay) · score for one score after the other, in one computation.

    A score that is followed by k others of the same cell gets weight (1 - decay) · decay^k.
    """
    same = cells[:, None] == cells[None, :]
    later = same.triu(1).sum(dim=1)
    taken = nn.functional.one_hot(cells, rates.numel()).float()  # a product is deterministic on CUDA, a scatter is not
    gained = ((1 - DECAY) * DECAY**later * scores) @ taken
    return (rates.flatten() * DECAY ** taken.sum(dim=0) + gained).view_as(rates)


def build_policy(augment: AugmentSettings, views: Views) -> Policy | None:
    """Returns a policy if the method has strong views and these are CTAugment's."""
    strong = "strong" in {*views.labeled, *views.unlabeled, *views.pseudo}
    return Policy() if augment.strong == "ctaugment" and strong and augment.operations else None
