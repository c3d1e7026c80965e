"""Controls the noise of a network: dropout before the head and stochastic depth, which act only in train mode."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftrain.models.torchvision_import import torchvision

StochasticDepth = torchvision.ops.StochasticDepth
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class Head(nn.Linear):
    """A head: features to logits, with dropout and a temperature, which do not change the weights' names."""

    def __init__(self, num_features: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__(num_features, num_classes)
        self.p = dropout
        self.temperature = 1.0

    def forward(self, features: Tensor) -> Tensor:
        logits = super().forward(F.dropout(features, self.p, self.training))
        return logits if self.temperature == 1 else logits / self.temperature


def drop_rates(last: float, blocks: int) -> list[float]:
    """Returns drop rates that rise linearly to the last block's; the first of several blocks is never dropped."""
    return [last * number / (blocks - 1) for number in range(blocks)] if blocks > 1 else [last] * blocks


def set_batch_norm_momentum(network: nn.Module, momentum: float) -> None:
    """Sets how fast batch norm's running statistics follow the batches."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum


def rate_name(module: nn.Module) -> str | None:
    """Returns the name of a module's drop rate; None if it drops nothing."""
    if isinstance(module, (*DROPOUTS, StochasticDepth, Head)):
        return "p"
    return "drop_prob" if isinstance(getattr(module, "drop_prob", None), float) else None  # timm's DropPath


def noisy_modules(network: nn.Module) -> list[nn.Module]:
    """Returns all modules of a network that draw random numbers."""
    return [module for module in network.modules() if rate_name(module)]


@contextlib.contextmanager
def with_noise(network: nn.Module, seed: int) -> Iterator[None]:
    """Switches dropout and stochastic depth on within the block, seeded, while batch norm keeps its mode."""
    noisy = noisy_modules(network)
    device = next(network.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            for module in noisy:
                module.train()
            yield
        finally:
            for module in noisy:
                module.eval()


@contextlib.contextmanager
def without_noise(network: nn.Module) -> Iterator[None]:
    """Switches dropout and stochastic depth off within the block, while batch norm keeps its mode."""
    noisy = [(module, name, getattr(module, name)) for module in network.modules() if (name := rate_name(module))]
    try:
        for module, name, _ in noisy:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, rate in noisy:
            setattr(module, name, rate)
