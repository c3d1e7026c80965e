"""Several networks as one: their features side by side, and one head that gives the mean of their logits."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from selftrain.models.classifier import Classifier


class SideBySide(nn.Module):
    """The features of several bodies, one after the other."""

    def __init__(self, bodies: Sequence[nn.Module]) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([body(images) for body in self.bodies], dim=1)


@torch.no_grad()
def joined(networks: Sequence[Classifier]) -> Classifier:
    """A classifier that shares the networks' bodies; its head is a copy of theirs as they are now."""
    num_features = sum(network.num_features for network in networks)
    first = networks[0]
    ensemble = Classifier(SideBySide([one.body for one in networks]), num_features, first.head.out_features)
    ensemble.head.to(first.head.weight.device)
    ensemble.head.weight.copy_(torch.cat([one.head.weight for one in networks], dim=1) / len(networks))
    ensemble.head.bias.copy_(torch.stack([one.head.bias for one in networks]).mean(dim=0))
    return ensemble


def members(network: Classifier) -> int:
    """How many networks a classifier is."""
    return len(network.body.bodies) if isinstance(network.body, SideBySide) else 1
