"""Loads and saves a trained network and its card, which prediction, evaluation and export need."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selftrain.models import ModelSettings, build_model
from selftrain.models.classifier import Classifier, joined
from selftrain.models.settings import Normalisation
from selftrain.models.tuning import merged
from selftrain.ssl_tasks.errors import DamagedArtifact, DataError
from selftrain.ssl_tasks.execution.devices import autocast, resolve_device, resolve_precision
from selftrain.ssl_tasks.reading import MOST_BYTES, read_regular
from selftrain.ssl_tasks.settings.section import Section
from selftrain.ssl_tasks.trained import CARD, WEIGHTS
from selftrain.ssl_tasks.trained.weights import base_file, body_tensors


class Base(Section):
    """The weights that a model differs from, if its file holds only the difference."""

    sha256: str
    lora_scale: float = 1.0  # scale of the low-rank additions


class Card(Section):
    """The facts needed to use the weights."""

    model: ModelSettings
    classes: tuple[str, ...]
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str = "auto"  # as set in training; `auto` is resolved on the machine that predicts
    built_for: int | None = None  # the image size that the network is built for, if it was fine-tuned at another
    members: int = 1  # number of networks in this model, whose logits are averaged
    base: Base | None = None
    resizing: dict[str, str | float] | None = None  # how images become squares, if not in the usual way

    @property
    def own_normalisation(self) -> Normalisation | None:
        """Returns the mean and deviation of the weights, if they are not those of the training images."""
        return self.model.preprocess if isinstance(self.model.preprocess, Normalisation) else None


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode on its device, in channels_last, that reads raw images."""

    network: Classifier
    card: Card
    device: torch.device
    dtype: torch.dtype
    scale: Tensor
    shift: Tensor

    @torch.inference_mode()
    def logits(self, images: np.ndarray | Tensor) -> Tensor:
        """Returns logits float32 [n, K] of uint8 images [n, H, W, C]; H and W may differ from the card's."""
        with autocast(self.device, self.dtype):
            return self.network(self.normalise(images)).float()

    @torch.inference_mode()
    def features(self, images: np.ndarray | Tensor) -> Tensor:
        """Returns features float32 [n, D], before the last layer."""
        with autocast(self.device, self.dtype):
            return self.network.features(self.normalise(images)).float()

    @torch.inference_mode()
    def logits_of(self, features: np.ndarray) -> Tensor:
        """Returns logits float32 [n, K] of stored features [n, D], by the last layer."""
        with autocast(self.device, self.dtype):
            return self.network.head(torch.from_numpy(features).to(self.device).float()).float()

    def normalise(self, images: np.ndarray | Tensor) -> Tensor:
        """Returns (x / 255 - mean) / std as float32 [n, C, H, W]; [n, H, W, C] in memory is channels_last already."""
        tensor = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
        if tensor.ndim != 4 or tensor.shape[-1] != self.card.in_channels or tensor.dtype != torch.uint8:
            raise DataError(
                f"found images {list(tensor.shape)} of {tensor.dtype}; expected uint8 images "
                f"[n, height, width, {self.card.in_channels}]"
            )
        moved = tensor.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return moved.mul(self.scale).add_(self.shift)


def save_trained(folder: Path, network: nn.Module, card: Card) -> None:
    """Writes model.safetensors and model.json."""
    save_weights(folder / WEIGHTS, network.state_dict())
    save_card(folder, card)


def save_card(folder: Path, card: Card) -> None:
    """Writes model.json, without the origin of the first weights, so that no path of this machine is published."""
    card = card.model_copy(update={"model": card.model.model_copy(update={"pretrained": None})})
    unsaid: dict[str, Any] = {name: True for name in ("built_for", "base", "resizing") if getattr(card, name) is None}
    if card.own_normalisation is None:
        unsaid["model"] = {"preprocess"}
    (folder / CARD).write_text(card.model_dump_json(indent=1, exclude=unsaid) + "\n")


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes a network's state with contiguous tensors, so that equal weights give equal bytes."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, path)


def load_card(folder: Path) -> Card:
    """Returns the card beside the weights."""
    try:
        return Card.model_validate_json(read_regular(folder / CARD, MOST_BYTES))
    except FileNotFoundError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
        raise DamagedArtifact(f"{folder / CARD} is not a model's card ({found})") from error
    except OSError as error:
        raise DamagedArtifact(f"{folder / CARD} is not a model's card ({error.strerror or error})") from error


def load_weights(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file, on the CPU."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedArtifact(f"{path} cannot be read as safetensors: {error}") from error


def write_whole(folder: Path, output: Path) -> None:
    """Writes a model that holds a difference as a whole one, which needs no other file."""
    card = load_card(folder)
    save_trained(output, load_trained(folder, "cpu", "fp32").network, card.model_copy(update={"base": None}))


def load_trained(folder: Path, device: str = "auto", precision: str = "auto") -> Trained:
    """Returns the network of a model artifact, ready to predict; `precision=auto` is what it was trained for."""
    return as_trained(*load_network(folder), device, precision)


def load_network(folder: Path) -> tuple[Classifier, Card]:
    """Returns the network of a model artifact with its weights as they are stored, and its card."""
    card = load_card(folder)
    size = len(card.classes), card.in_channels, card.built_for or card.image_size
    networks = [build_model(card.model, *size) for _ in range(card.members)]
    network = networks[0] if card.members == 1 else joined(networks)
    state = load_weights(folder / WEIGHTS)
    if card.base is not None:
        whole = merged({**body_tensors(base_file(folder, card.base.sha256)), **state}, card.base.lora_scale)
        # The file may have the head of its own classes, and layers that the network leaves out.
        state = {name: whole[name] for name in network.state_dict() if name in whole}
    network.load_state_dict(state)
    return network, card


def as_trained(network: Classifier, card: Card, device: str = "auto", precision: str = "auto") -> Trained:
    """Prepares a network for prediction: evaluation mode, channels_last, and weights in the format of products."""
    where = resolve_device(device)
    dtype = resolve_precision(card.precision if precision == "auto" else precision, where)
    network = network.to(where).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    for module in network.modules():
        # Autocast would convert these weights again for every batch; the result is the same.
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(dtype)
    mean, std = (torch.tensor(values, device=where).view(1, -1, 1, 1) for values in (card.mean, card.std))
    return Trained(network, card, where, dtype, 1 / (255 * std), -mean / std)
