"""Holds MODELS, the table of network families. A new family is one function in `networks.py` and one line here."""

import re
from collections.abc import Callable

from selftrain.models import ModelSettings
from selftrain.models.classifier import Classifier
from selftrain.models.libraries import build_timm, build_torchvision
from selftrain.models.networks import build_fast_cnn, build_mlp, build_small_cnn, build_wide_resnet
from selftrain.models.noise import set_batch_norm_momentum
from selftrain.ssl_tasks.errors import ConfigError, nearest

Builder = Callable[[ModelSettings, int, int, int], Classifier]  # settings, classes, channels, image size

MODELS: dict[str, Builder] = {  # the name, with numbers for D (depth) and K (width)
    "wrn-D-K": build_wide_resnet,
    "small_cnn": build_small_cnn,
    "fast_cnn": build_fast_cnn,
    "mlp": build_mlp,
    "mlp-D": build_mlp,
    "torchvision:<name>": build_torchvision,
    "timm:<name>": build_timm,
}
WITH_WIDTH = {"small_cnn", "fast_cnn", "mlp", "mlp-D"}


def find_family(name: str) -> str:
    """Returns the entry of MODELS that a network's name belongs to."""
    for known in MODELS:
        pattern = re.sub(r"-[DK]\b", r"-[1-9][0-9]*", known).replace("<name>", ".+")
        if re.fullmatch(pattern, name):
            return known
    raise ConfigError(f"model '{name}' is unknown." + nearest(name, MODELS))


def build(settings: ModelSettings, num_classes: int, in_channels: int, image_size: int) -> Classifier:
    """Builds the network that the settings name, with its noise; its weights are random or read from a file."""
    family = find_family(settings.name)
    if settings.width is not None and family not in WITH_WIDTH:
        raise ConfigError(
            f"model '{settings.name}' has no width to set: model.width belongs to {', '.join(sorted(WITH_WIDTH))}. "
            "A wide ResNet's width is the K of its name."
        )
    network = MODELS[family](settings, num_classes, in_channels, image_size)
    if settings.batch_norm_momentum is not None:
        set_batch_norm_momentum(network, settings.batch_norm_momentum)
    if settings.pretrained is not None:
        from selftrain.models.pretrained import load_pretrained  # safetensors is not on every GPU machine
        from selftrain.models.sources import obtain

        file = obtain(settings).file
        assert file is not None
        load_pretrained(network, file, image_size)
    return network
