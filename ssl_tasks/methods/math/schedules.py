"""Pure functions of a run's progress, from 0 (first step) to 1 (last step)."""

import math
from bisect import bisect_left
from typing import Literal


def first_step(share: float, steps: int) -> int:
    """The first step of a run of `steps` whose progress reaches a share; `steps` where none does."""
    return bisect_left(range(steps), share, key=lambda step: step / max(1, steps - 1))


def linear_ramp(progress: float, length: float, start: float = 0.0) -> float:
    """0 until `start`, then straight to 1 within `length` of the run."""
    if progress >= start + length:
        return 1.0
    return 0.0 if progress <= start else (progress - start) / length


def sigmoid_ramp(progress: float, length: float) -> float:
    """exp(-5 (1 - t)²) within the first `length` of the run, then 1 (temporal ensembling, mean teacher)."""
    return math.exp(-5 * (1 - linear_ramp(progress, length)) ** 2)


def ramp(kind: Literal["sigmoid", "linear"], progress: float, length: float) -> float:
    """The rise of a weight within the first `length` of the run."""
    return linear_ramp(progress, length) if kind == "linear" else sigmoid_ramp(progress, length)


def tsa_threshold(progress: float, num_classes: int, schedule: Literal["linear", "exp", "log"]) -> float:
    """UDA's training signal annealing: from 1/K to 1. `exp` releases labelled images late, `log` early."""
    released = {
        "linear": progress,
        "exp": math.exp(5 * (progress - 1)),
        "log": 1 - math.exp(-5 * progress),
    }[schedule]
    return released * (1 - 1 / num_classes) + 1 / num_classes
