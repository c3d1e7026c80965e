"""Builds networks by name. Importing this package does not import torch; `build_model` does."""

from typing import TYPE_CHECKING

from selftrain.models.settings import ModelSettings

if TYPE_CHECKING:
    from selftrain.models.classifier import Classifier

__all__ = ["ModelSettings", "build_model"]


def build_model(settings: ModelSettings, num_classes: int, in_channels: int = 3, image_size: int = 32) -> "Classifier":
    """Builds the network that the settings name: `network(x)` → logits, `.features(x)`, `.head`, `.num_features`."""
    from selftrain.models.registry import build

    return build(settings, num_classes, in_channels, image_size)
