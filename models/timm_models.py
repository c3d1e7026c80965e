"""`timm:<name>`: any network of the timm package, which is an extra, as a body."""

import importlib
from types import ModuleType
from typing import Any

from torch import nn

from selftrain.models.classifier import Classifier
from selftrain.models.settings import ModelSettings
from selftrain.models.torchvision_models import check_image_size
from selftrain.ssl_tasks.errors import ConfigError, nearest


def import_timm() -> ModuleType:
    """timm, or how to get it."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "models named timm:<name> need the package timm, which is not installed: pip install 'selftrain[timm]'."
        ) from error


def build_timm(settings: ModelSettings, num_classes: int, in_channels: int, image_size: int) -> Classifier:
    """timm's network without its head; parameter names stay timm's."""
    timm, name = import_timm(), settings.name.partition(":")[2]
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model '{name}'." + nearest_of_many(name, timm.list_models()))
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": in_channels}
    body = create(timm, settings, options, image_size)
    check_image_size(body, settings.name, in_channels, image_size)
    return Classifier(body, count_features(body), num_classes, settings.dropout)


def create(timm: ModuleType, settings: ModelSettings, options: dict[str, Any], image_size: int) -> nn.Module:
    """Networks that are built for one size are told ours, and those that drop paths how many; others refuse either."""
    name, size, depth = settings.name.partition(":")[2], {"img_size": image_size}, settings.stochastic_depth
    noisy = {"drop_path_rate": depth}  # 0 too: some of timm's networks drop paths unless they are told not to
    attempts: list[dict[str, Any]] = [{**size, **noisy}, noisy, *([] if depth else [size, {}])]
    for extra in attempts:
        try:
            return timm.create_model(name, **options, **extra)
        except TypeError as error:
            refused = error
    raise ConfigError(
        f"model '{settings.name}' does not take the noise that was asked for: {refused}. "
        "Set model.stochastic_depth to 0."
    ) from refused


def count_features(body: nn.Module) -> int:
    """What the head reads: timm says it apart where a layer lies between the pooling and the head."""
    features = getattr(body, "head_hidden_size", None) or getattr(body, "num_features", None)
    assert isinstance(features, int), "every timm classifier knows its number of features"
    return features


def nearest_of_many(name: str, known: list[str]) -> str:
    """As `nearest`, without a list of a thousand names."""
    return nearest(name, known).partition(" Known:")[0] + " timm.list_models() lists them."
