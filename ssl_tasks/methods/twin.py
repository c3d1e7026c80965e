"""A second network of the student's kind, for methods in which two networks teach each other."""

import copy
from typing import Literal

import torch

from models.classifier import Classifier


@torch.no_grad()
def twin(student: Classifier, weights: Literal["scratch", "student"]) -> Classifier:
    """A trainable copy with the student's weights, or with ones as if drawn anew.

    Shuffling each kernel's numbers is a fresh draw wherever they were drawn independently, whatever the distribution
    that the network's builder has chosen; biases and norms keep their first values.
    """
    network = copy.deepcopy(student).requires_grad_(True)
    if weights == "scratch":
        for kernel in network.parameters():
            if kernel.ndim >= 2:
                order = torch.randperm(kernel.numel()).to(kernel.device)
                kernel.copy_(kernel.contiguous().view(-1)[order].view(kernel.shape))
    return network
