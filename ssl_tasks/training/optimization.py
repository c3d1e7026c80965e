"""The optimizer, who is decayed, and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from selftrain.ssl_tasks.settings.training import TrainSettings


def learning_rate(train: TrainSettings, step: int) -> float:
    """At step 0 … steps - 1: a linear rise over the warm-up, then the schedule over the steps that are left."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    progress = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    if train.schedule == "constant":
        return train.learning_rate
    if train.schedule == "exponential":
        return train.learning_rate * train.final_rate**progress
    if train.schedule == "cosine":
        return train.learning_rate * (1 + math.cos(math.pi * progress)) / 2
    return train.learning_rate * math.cos(7 * math.pi * progress / 16)  # FixMatch's, which ends at 0.195


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Kernels (two dimensions or more) are decayed; biases, norms and other scales are not."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    kernels = [parameter for parameter in wanted if parameter.ndim >= 2]
    others = [parameter for parameter in wanted if parameter.ndim < 2]
    groups = [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(train: TrainSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with L2 in the gradient, as FixMatch, or AdamW with decoupled decay; one fused pass over the weights."""
    groups = parameter_groups(parameters, train.weight_decay)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.learning_rate, fused=True)
    nesterov = train.nesterov and train.momentum > 0
    return torch.optim.SGD(groups, lr=train.learning_rate, momentum=train.momentum, nesterov=nesterov, fused=True)


def momentum(train: TrainSettings, step: int) -> float:
    """At step 0 … steps - 1: from .5 straight to the settings' over the warm-up (Hinton 2012, arXiv 1207.0580)."""
    share = min(1.0, step / train.momentum_warmup_steps) if train.momentum_warmup_steps else 1.0
    return share * train.momentum + (1 - share) * 0.5


def set_rates(optimizer: torch.optim.Optimizer, train: TrainSettings, step: int) -> None:
    """One learning rate for all groups; and one momentum, where it rises."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(train, step)
        if train.momentum_warmup_steps:
            group["momentum"] = group["dampening"] = momentum(train, step)
