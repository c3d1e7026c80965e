"""Builds networks of other libraries: `timm:<name>` (needs the extra `timm`) and `torchvision:<name>`.

Parameter names are those of the library. torchvision's networks are adapted to any number of channels and to small
images.
"""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import nn

from selftrain.models import ModelSettings
from selftrain.models.classifier import Classifier
from selftrain.models.noise import DROPOUTS, StochasticDepth, drop_rates
from selftrain.models.torchvision_import import torchvision
from selftrain.ssl_tasks.errors import ConfigError, nearest


def import_timm() -> ModuleType:
    """Returns timm; raises ConfigError if it is not installed."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "models named timm:<name> need the package timm, which is not installed: pip install 'selftrain[timm]'."
        ) from error


def build_timm(settings: ModelSettings, num_classes: int, in_channels: int, image_size: int) -> Classifier:
    """Builds timm's network with our head; parameter names are timm's."""
    timm, name = import_timm(), settings.name.partition(":")[2]
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model '{name}'." + nearest_of_many(name, timm.list_models()))
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": in_channels}
    body = create_timm(timm, settings, options, image_size)
    check_image_size(body, settings.name, in_channels, image_size)
    return Classifier(body, count_features(body), num_classes, settings.dropout)


def create_timm(timm: ModuleType, settings: ModelSettings, options: dict[str, Any], image_size: int) -> nn.Module:
    """Creates timm's network, with the image size and the drop-path rate if it takes them."""
    name, size, depth = settings.name.partition(":")[2], {"img_size": image_size}, settings.stochastic_depth
    noisy = {"drop_path_rate": depth}  # 0 too: some of timm's networks drop paths by default
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
    """Counts the features that the head reads; timm states them separately if a layer follows the pooling."""
    features = getattr(body, "head_hidden_size", None) or getattr(body, "num_features", None)
    assert isinstance(features, int), "every timm classifier knows its number of features"
    return features


def nearest_of_many(name: str, known: list[str]) -> str:
    """Returns `nearest`'s hint without the list of a thousand names."""
    return nearest(name, known).partition(" Known:")[0] + " timm.list_models() lists them."


SMALL = 64  # pixels of a side below which the first reduction by four loses too much
SIZE_OPTION = {"vit": "image_size", "maxvit": "input_size"}  # families that are built for one size


def build_torchvision(settings: ModelSettings, num_classes: int, in_channels: int, image_size: int) -> Classifier:
    """Builds torchvision's network with our head; parameter names are torchvision's."""
    name = settings.name.partition(":")[2]
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ConfigError(f"torchvision has no classifier '{name}'." + nearest(name, known))
    body = create_torchvision(name, image_size)
    adapt_stem(body, in_channels, image_size)
    num_features = remove_head(body)
    set_noise(body, settings)
    check_image_size(body, settings.name, in_channels, image_size)
    return Classifier(body, num_features, num_classes, settings.dropout)


def create_torchvision(name: str, image_size: int) -> nn.Module:
    """Creates torchvision's network with random weights and without auxiliary classifiers."""
    options: dict[str, Any] = {"weights": None}
    option = SIZE_OPTION.get(name.partition("_")[0])
    if option:
        options[option] = image_size if option == "image_size" else (image_size, image_size)
    if name in {"googlenet", "inception_v3"}:
        options |= {"aux_logits": False, "init_weights": True}
    try:
        return torchvision.models.get_model(name, **options)
    except (AssertionError, ValueError) as error:
        raise ConfigError(
            f"model 'torchvision:{name}' cannot be built for {image_size}×{image_size} images: {error}. "
            "Change data.image_size, or use wrn-28-2, small_cnn or torchvision:efficientnet_b0, which take any size."
        ) from error


def adapt_stem(body: nn.Module, in_channels: int, image_size: int) -> None:
    """Makes the first convolution read `in_channels`; for small images, removes the first reduction by four."""
    name: str
    stem: Any  # a Conv2d, whose stubs do not accept its own attributes back
    name, stem = next((name, module) for name, module in body.named_modules() if isinstance(module, nn.Conv2d))
    overlapping = stem.kernel_size[0] > stem.stride[0]  # patches that do not overlap are a transformer's tokens
    if image_size < SMALL and overlapping:
        stem.stride = (1, 1)
        for place in ("maxpool", "features.pool0"):
            if place in dict(body.named_modules()):
                body.set_submodule(place, nn.Identity())
    if stem.in_channels != in_channels:
        fresh = nn.Conv2d(
            in_channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=stem.bias is not None
        )
        nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
        body.set_submodule(name, fresh)


def remove_head(body: nn.Module) -> int:
    """Removes the last layer, and returns the number of features that it read."""
    name, head = [item for item in body.named_modules() if isinstance(item[1], (nn.Linear, nn.Conv2d))][-1]
    body.set_submodule(name, nn.Identity())
    return head.in_features if isinstance(head, nn.Linear) else head.in_channels


def set_noise(body: nn.Module, settings: ModelSettings) -> None:
    """Sets stochastic depth as in the settings; switches the network's own dropout off, because our head has it."""
    branches = [module for module in body.modules() if isinstance(module, StochasticDepth)]
    if settings.stochastic_depth and not branches:
        raise ConfigError(
            f"model '{settings.name}' has no branches that stochastic depth could drop; set model.stochastic_depth "
            "to 0, or use wrn-D-K, small_cnn, or torchvision's efficientnet, convnext or swin."
        )
    for branch, rate in zip(branches, drop_rates(settings.stochastic_depth, len(branches)), strict=True):
        branch.p = rate
    for module in body.modules():
        if isinstance(module, DROPOUTS):
            module.p = 0.0


def check_image_size(body: nn.Module, name: str, in_channels: int, image_size: int) -> None:
    """Raises ConfigError if the network cannot take images of this size; computes shapes only."""
    tensors = {**dict(body.named_parameters()), **dict(body.named_buffers())}
    shapes = {key: tensor.to("meta") for key, tensor in tensors.items()}
    images = torch.empty(2, in_channels, image_size, image_size, device="meta")
    body.eval()
    try:
        torch.func.functional_call(body, shapes, (images,))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model '{name}' cannot take {image_size}×{image_size} images with {in_channels} channels: "
            f"{str(error).splitlines()[0]}. Raise data.image_size, or use wrn-28-2 or small_cnn, which take any size."
        ) from error
    finally:
        body.train()
