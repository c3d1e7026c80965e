"""A second network of the student's kind, for methods in which two networks teach each other."""

import copy
from collections.abc import Callable
from typing import Literal

from selftrain.models.classifier import Classifier


def twin(student: Classifier, weights: Literal["scratch", "student"], another: Callable[[], Classifier]) -> Classifier:
    """A trainable copy with the student's weights, or with those of another network that is built anew.

    Also then it is a copy, so that it lies where and as the student does.
    """
    network = copy.deepcopy(student).requires_grad_(True)
    if weights == "scratch":
        network.load_state_dict(another().state_dict())
    return network
