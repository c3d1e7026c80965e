"""Defines the shape of every network: a body turns images into features, and a head turns features into logits.

An ensemble is a classifier too: its features stand side by side, and its head gives the mean of the members' logits.
Batch norm can compute its statistics over the images of all processes.
"""

import importlib
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftrain.models.noise import Head
from selftrain.ssl_tasks.errors import ConfigError


class Classifier(nn.Module):
    """A network with `network(x)` = `network.head(network.features(x))`. Its noise acts in train mode only."""

    def __init__(self, body: nn.Module, num_features: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = body
        self.num_features = num_features
        self.head = Head(num_features, num_classes, dropout)
        self.still: tuple[str, ...] = ()  # names of frozen batch norms, whose statistics do not change

    def train(self, mode: bool = True) -> Self:
        """Sets train or evaluation mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        for name in self.still:
            self.get_submodule(name).eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Computes features, [n, C, H, W] → [n, num_features]."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class SideBySide(nn.Module):
    """A body that concatenates the features of several bodies."""

    def __init__(self, bodies: Sequence[nn.Module]) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([body(images) for body in self.bodies], dim=1)


@torch.no_grad()
def joined(networks: Sequence[Classifier]) -> Classifier:
    """Returns an ensemble that shares the networks' bodies; its head is a copy of their current heads."""
    num_features = sum(network.num_features for network in networks)
    first = networks[0]
    ensemble = Classifier(SideBySide([one.body for one in networks]), num_features, first.head.out_features)
    ensemble.head.to(first.head.weight.device)
    ensemble.head.temperature = first.head.temperature
    ensemble.head.weight.copy_(torch.cat([one.head.weight for one in networks], dim=1) / len(networks))
    ensemble.head.bias.copy_(torch.stack([one.head.bias for one in networks]).mean(dim=0))
    return ensemble


def members(network: Classifier) -> int:
    """Returns the number of networks in a classifier."""
    return len(network.body.bodies) if isinstance(network.body, SideBySide) else 1


PLAIN: set[type[nn.Module]] = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}


def synchronise_batch_norm(network: nn.Module) -> None:
    """Makes every batch norm of the network compute its statistics over all processes.

    Torch's own conversion treats every subclass of batch norm as a plain one: timm's, which includes an activation,
    would lose it.
    """
    kinds = {type(module) for module in network.modules() if isinstance(module, _BatchNorm)}
    convert, known = nn.SyncBatchNorm.convert_sync_batchnorm, PLAIN
    if any(kind.__module__.startswith("timm.") for kind in kinds):
        layers = importlib.import_module("timm.layers")
        convert, known = layers.convert_sync_batchnorm, PLAIN | {layers.BatchNormAct2d}
    if unknown := sorted(kind.__name__ for kind in kinds - known):
        raise ConfigError(
            f"the network's batch norm is of a kind of its own ({', '.join(unknown)}), which cannot be synchronised "
            "over several GPUs. Train on one GPU (runtime.processes: 1), or use wrn-28-2 or a network of torchvision."
        )
    convert(network)
