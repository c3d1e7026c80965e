"""MODELS: the families of networks by name. A new family is one file and one line here."""

import re
from collections.abc import Callable

from models.classifier import Classifier
from models.mlp import build_mlp
from models.settings import ModelSettings
from models.small_cnn import build_small_cnn
from models.wide_resnet import build_wide_resnet
from ssl_tasks.errors import ConfigError, nearest

Builder = Callable[[ModelSettings, int, int, int], Classifier]  # settings, classes, channels, image size

MODELS: dict[str, Builder] = {  # the name, or its pattern with D (depth) and K (width) as numbers
    "wrn-D-K": build_wide_resnet,
    "small_cnn": build_small_cnn,
    "mlp": build_mlp,
    "mlp-D": build_mlp,
}


def find_builder(name: str) -> Builder:
    """The builder whose name or pattern fits."""
    for known, builder in MODELS.items():
        if re.fullmatch(re.sub(r"-[DK]", r"-[0-9]+", known), name):
            return builder
    raise ConfigError(f"model '{name}' is unknown." + nearest(name, MODELS))


def build(settings: ModelSettings, num_classes: int, in_channels: int, image_size: int) -> Classifier:
    """The network that the settings name, its noise set, its first weights drawn from torch's generator."""
    return find_builder(settings.name)(settings, num_classes, in_channels, image_size)
