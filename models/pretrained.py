"""First weights from a local safetensors file: our own networks', torchvision's or timm's, by their own names."""

import logging
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.errors import ConfigError

logger = logging.getLogger(__name__)
SHOWN = 3  # names in a message


def load_pretrained(network: Classifier, path: Path) -> None:
    """Fills the body; the head too where its size fits, else it keeps its fresh weights, which is said."""
    found = {rename(name): weight for name, weight in read_weights(path).items()}
    own = network.state_dict()
    body = {name: weight for name, weight in own.items() if name.startswith("body.")}
    check_fit(body, found, path)
    head = {name: weight for name, weight in own.items() if name.startswith("head.")}
    fits = all(name in found and found[name].shape == weight.shape for name, weight in head.items())
    if not fits:
        logger.warning("%s: the head does not fit %d classes; it starts afresh", path, network.head.out_features)
    taken = {name: found[name] for name in (own if fits else body) if name in found}
    network.load_state_dict(own | taken)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The file's tensors by name."""
    if not path.is_file():
        raise ConfigError(f"model.pretrained: {path} is not a file. Give the path of a .safetensors file.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(
            f"model.pretrained: {path} is not a safetensors file ({error}). "
            "Save a state dict with safetensors.torch.save_file; files that torch.save wrote are not read."
        ) from error


def rename(name: str) -> str:
    """A network that others saved is the body of ours."""
    return name if name.startswith(("body.", "head.")) else f"body.{name}"


def check_fit(body: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    """Every weight of the body must be there with its shape: a half-loaded network would train unnoticed."""
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
            "Name the model that the file was saved from, with the same width, channels and image size."
        )
