"""Fills networks with pretrained weights: our own, timm's or torchvision's, by their own names.

Files are read as safetensors; torchvision's official ones with `weights_only`.
"""

import importlib
import logging
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from selftrain.models.classifier import Classifier
from selftrain.models.settings import check_safetensors
from selftrain.ssl_tasks.errors import ConfigError

logger = logging.getLogger("selftrain")
SHOWN = 3  # names shown in a message


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the file's tensors by name."""
    if path.suffix == ".pth":
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    check_safetensors(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"model.pretrained: {path} is not a safetensors file ({error}). Fetch it again.") from error


def load_pretrained(network: Classifier, path: Path, image_size: int) -> None:
    """Fills the body, and the head if the file has one that fits; if not, the head keeps its random weights."""
    found = read_weights(path)
    if not any(name.startswith("body.") for name in found):
        found = {f"body.{name}": weight for name, weight in converted(network.body, found, path, image_size).items()}
    own = network.state_dict()
    body = {name: weight for name, weight in own.items() if name.startswith("body.")}
    check_fit(body, found, path)
    head = {name: weight for name, weight in own.items() if name.startswith("head.")}
    fits = all(name in found and found[name].shape == weight.shape for name, weight in head.items())
    if not fits:
        logger.warning("%s: the head does not fit %d classes; it starts afresh", path, network.head.out_features)
    taken = {name: found[name] for name in (own if fits else body) if name in found}
    network.load_state_dict(own | taken)


def converted(body: nn.Module, found: dict[str, Tensor], path: Path, image_size: int) -> dict[str, Tensor]:
    """Returns a library's weights for this image size: position embeddings are resampled, old names replaced."""
    try:
        if type(body).__module__.startswith("timm."):
            convert = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
            return found if convert is None else convert(found, body)
        if "encoder.pos_embedding" in found and hasattr(body, "patch_size"):
            resample = importlib.import_module("torchvision.models.vision_transformer").interpolate_embeddings
            return resample(image_size, body.patch_size, found)
    except (KeyError, AttributeError, RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"model.pretrained: {path} does not fit this network: {reason}.") from error
    return found


def check_fit(body: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    """Raises ConfigError unless the file has every weight of the body, in its shape."""
    missing = [name for name in body if name not in found and not name.endswith("num_batches_tracked")]
    wrong = [
        f"{name} is {list(found[name].shape)} in the file and {list(weight.shape)} in the network"
        for name, weight in body.items()
        if name in found and found[name].shape != weight.shape
    ]
    if missing or wrong:
        lacks = [f"the file lacks {', '.join(missing[:SHOWN])}{', …' * (len(missing) > SHOWN)}"] if missing else []
        raise ConfigError(
            f"model.pretrained: {path} does not fit this network: {'; '.join(lacks + wrong[:SHOWN])}. "
            "Name the model that the file was saved from, with the same width, channels (data.channels) and image size."
        )
