"""CTAugment (ReMixMatch, arXiv 1911.09785): operations whose magnitudes are drawn from what the network can still read.

An operation's range is cut into bins, each with a rate: how well the network recognises images that were changed so.
Strong views draw operations, and for each one of its bins whose rate is near the best; probes draw any bin, and their
match, 1 - ½ Σ|prediction - label|, moves the bin's rate (`Policy`).

There are two official codes. The draw is that of FixMatch's repository, which is the later one: a bin by its rate, then
a level anywhere in the bin. ReMixMatch's draws one of 16 segments by the sum of the rates of two adjacent bins of 17,
and a level within the segment; but scores are written to 17 bins, so that a level's score reaches another bin than the
one that chose it. Its authors replaced that draw, and so do we. FixMatch cuts out a fixed square of half the side
afterwards; ReMixMatch does not (`cutout: 0`).

Operations and ranges are the official ones, except:
- translations reach .3 of the side, as FixMatch's paper prints. Both codes say .3 of a pixel, which moves nothing.
- `rescale` leaves out up to a quarter of the side all around, as FixMatch's code; ReMixMatch's says .25 of a pixel. Its
  resampling filter, which the codes also choose by rates, is always bilinear.
- `posterize` has 17 bins where the codes have 8, shears are about the middle of the image and not about a corner.

The rates reach the workers that draw the views through shared memory (`Policy`). Workers build batches ahead of the
step that learns. So that a batch stays a pure function of its step, the rates that it is drawn from are those of a
fixed step in the past: in period m (steps m·REFRESH …), the rates as they were at the beginning of period m - 1. The
two newest tables lie in shared memory; a worker that is further ahead than a period waits. A run that was stopped
continues from the buffers, which are saved with the method's.
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
THRESHOLD = 0.8  # of the best bin's rate, below which a bin is not used
PER_OPERATION = 5  # uniform numbers: which, which bin, where in the bin, and a place for what needs one
Place = list[float]


@dataclass(frozen=True)
class Leveled:
    """An operation, and its argument at a level in [0, 1)."""

    argument: Callable[[float], float]
    change: Callable[[Bytes, float, Place], Bytes]

    def __call__(self, image: Bytes, level: float, place: Place) -> Bytes:
        """The image changed at a level."""
        return self.change(image, self.argument(level), place)


def cut_square(image: Bytes, share: float, place: Place) -> Bytes:
    """Returns a grey square whose side is a share of the image's."""
    return change.cutout(image, change.cutout_boxes(np.array([[1, *place]]), image.shape[0], share)[0])


def blended(apply: Callable[[Bytes], Bytes]) -> Leveled:
    """As much of the changed image as the level says."""
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
    """The operations applied to each image: [n, depth] operations, their bins and levels, and [n, depth, 2] places."""

    operations: Integers
    bins: Integers
    levels: Numbers
    places: Numbers

    def pairs(self) -> Integers:
        """[n, depth, (operation, bin)]: which rates the images speak for."""
        return np.stack([self.operations, self.bins], axis=2)


def fresh_rates() -> Rates:
    """[operations, bins]: before anything is learnt, all bins are alike."""
    return np.ones((len(TABLE), BINS), np.float32)


def draws(depth: int) -> int:
    """Uniform numbers an image needs."""
    return PER_OPERATION * depth


def usable_shares(rates: Rates) -> Numbers:
    """[operations, bins] the probability of each bin: its rate, where that is near the operation's best."""
    shares = rates.astype(np.float64) + (1 - DECAY)  # as the official code: rates may all be zero
    shares /= shares.max(axis=1, keepdims=True)
    shares[shares < THRESHOLD] = 0
    return shares / shares.sum(axis=1, keepdims=True)


def choose(rates: Rates | None, uniform: Numbers, depth: int) -> Choice:
    """Operations drawn alike, and bins by their rates; without rates, bins alike. `uniform` is [n, draws(depth)]."""
    which, bin_draw, within, *place = (uniform[:, part * depth : (part + 1) * depth] for part in range(PER_OPERATION))
    operations = (which * len(TABLE)).astype(np.int64)
    shares = np.full((len(TABLE), BINS), 1 / BINS) if rates is None else usable_shares(rates)
    below = np.cumsum(shares, axis=1)[:, :-1]  # the last bin takes what rounding leaves
    bins = (bin_draw[:, :, None] >= below[operations]).sum(axis=2)
    return Choice(operations, bins, (bins + within) / BINS, np.stack(place, axis=2))


def apply(images: Bytes, choice: Choice, boxes: change.Boxes | None = None) -> Bytes:
    """uint8 [n, S, S, C] → the same shape; with `boxes` [n, 4], a square is cut out at the end."""
    out = np.empty(images.shape, np.uint8)
    steps = zip(choice.operations.tolist(), choice.levels.tolist(), choice.places.tolist(), strict=True)
    for number, chosen in enumerate(steps):
        image = images[number]
        for which, level, place in zip(*chosen, strict=True):
            image = TABLE[which](image, level, place)
        out[number] = image if boxes is None else change.cutout(image, boxes[number])
    return out


REFRESH = 32  # steps: more than workers read ahead, much less than a rate takes to move
BLOCK = 1024  # scores that are folded in at once


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
    """The rates, moved by every step's probes. On the device: learning waits for nothing but a table's publication."""

    rates: Tensor
    published: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.board = PolicyBoard()
        self.register_buffer("rates", torch.from_numpy(fresh_rates()))
        self.register_buffer("published", self.board.tables.clone())

    def open(self, step: int) -> None:
        """Puts on the board what the batches from `step` on are drawn from."""
        self.board.tables.copy_(self.published)
        self.board.version.fill_(step // REFRESH)

    @torch.no_grad()
    def learn(self, done: int, choices: Tensor, scores: Tensor) -> None:
        """Folds in what the probes of a step say, [n, depth, 2] and [n]; `done` steps are behind us now."""
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
    """rate ← decay · rate + (1 - decay) · score, for one score after the other, all at once.

    A score that k later ones of the same cell follow has weight (1 - decay) · decay^k in the end.
    """
    same = cells[:, None] == cells[None, :]
    later = same.triu(1).sum(dim=1)
    taken = nn.functional.one_hot(cells, rates.numel()).float()  # a product is deterministic on CUDA, a scatter is not
    gained = ((1 - DECAY) * DECAY**later * scores) @ taken
    return (rates.flatten() * DECAY ** taken.sum(dim=0) + gained).view_as(rates)


def build_policy(augment: AugmentSettings, views: Views) -> Policy | None:
    """Returns a policy where strong views are CTAugment's, and there are any."""
    strong = "strong" in {*views.labeled, *views.unlabeled, *views.pseudo}
    return Policy() if augment.strong == "ctaugment" and strong and augment.operations else None
