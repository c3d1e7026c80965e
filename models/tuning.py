"""Chooses the weights of a network that are trained: all, the head, the norms, the last layers, or LoRA's.

Frozen weights get no gradient and take no memory in the optimizer; frozen batch norms keep their statistics. LoRA
(Hu et al. 2021, arXiv 2106.09685) leaves a layer's weight W as it is and adds alpha/rank · up(down(x)) to its output,
with `up` zero at the start; `merged` makes them part of the weights: W + alpha/rank · up · down.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from selftrain.models.classifier import Classifier
from selftrain.models.settings import LoraSettings
from selftrain.ssl_tasks.errors import ConfigError, nearest

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
LISTS = (nn.Sequential, nn.ModuleList)
LORA = "lora"
DOWN, UP = f".{LORA}.down.weight", f".{LORA}.up.weight"


class LowRank(nn.Module):
    """A low-rank addition up(down(x)) · scale to a linear layer or a 1×1 convolution; it is zero before training."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, settings: LoraSettings) -> None:
        super().__init__()
        self.scale = settings.alpha / settings.rank
        if isinstance(layer, nn.Linear):
            self.down: nn.Linear | nn.Conv2d = nn.Linear(layer.in_features, settings.rank, bias=False)
            self.up: nn.Linear | nn.Conv2d = nn.Linear(settings.rank, layer.out_features, bias=False)
        else:
            stride, padding = (layer.stride[0], layer.stride[1]), layer.padding
            self.down = nn.Conv2d(layer.in_channels, settings.rank, 1, stride, padding, bias=False)  # type: ignore[arg-type]
            self.up = nn.Conv2d(settings.rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.up(self.down(inputs)) * self.scale


def add_low_rank(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Adds the low-rank part as a hook, so that the layer keeps its class and its weights their names."""
    return output + layer.lora(inputs[0])  # type: ignore[operator]


def tune(network: Classifier, what: str, lora: LoraSettings) -> None:
    """Freezes all weights except those of `what`: all, head, norms, lora or last-N. The head is always trained."""
    if what == "all":
        return
    network.requires_grad_(False)
    network.head.requires_grad_(True)
    if what == "norms":
        for module in norms(network.body):
            module.requires_grad_(True)
    elif what == LORA:
        for layer in lora_layers(network.body, lora).values():
            layer.add_module(LORA, LowRank(layer, lora))
            layer.register_forward_hook(add_low_rank)
    elif what.startswith("last-"):
        for parameter in last_layers(network.body, int(what.removeprefix("last-"))):
            parameter.requires_grad_(True)
    network.still = tuple(
        name
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and not any(one.requires_grad for one in module.parameters())
    )


def norms(body: nn.Module) -> Iterator[nn.Module]:
    """Yields every layer that normalises and has weights; raises ConfigError if there is none."""
    found = [module for module in body.modules() if isinstance(module, NORMS) and list(module.parameters())]
    if not found:
        raise ConfigError("train.tune is norms, and the network has none; use head, last-N or all")
    yield from found


def lora_layers(body: nn.Module, settings: LoraSettings) -> dict[str, nn.Linear | nn.Conv2d]:
    """Returns the layers that LoRA adapts, by name; not those that torch's attention reads without calling them."""
    known = {
        name: module
        for name, module in body.named_modules()
        if type(module) is nn.Linear
        or (type(module) is nn.Conv2d and set(module.kernel_size) == {1} and module.groups == 1)
    }
    wanted = settings.targets
    if unknown := [target for target in wanted if not any(target in name for name in known)]:
        parts = {part for name in known for part in name.split(".") if not part.isdecimal()}
        raise ConfigError(
            f"train.lora.targets: '{unknown[0]}' is in the name of no linear or 1×1 convolutional layer of this "
            f"network.{nearest(unknown[0], parts)}"
        )
    if not known:
        raise ConfigError(
            "train.tune is lora, and the network has neither linear layers nor 1×1 convolutions; use norms, last-N or "
            "all"
        )
    return {name: layer for name, layer in known.items() if not wanted or any(part in name for part in wanted)}


def last_layers(body: nn.Module, count: int) -> list[nn.Parameter]:
    """Returns the parameters of the last layers of a body."""
    found = layers(body)
    if count > len(found):
        raise ConfigError(f"train.tune is last-{count}, and the network has {len(found)} layers; use last-N or all")
    return [parameter for layer in found[-count:] for parameter in layer]


def layers(body: nn.Module) -> list[list[nn.Parameter]]:
    """Returns a body's parameters by layer, from the images to the features.

    A layer is an element of the network's lists: a residual block, a transformer's block, a convolution of the stem.
    A module without a kernel (a norm) belongs to the layer before it.
    """
    found: list[list[nn.Parameter]] = []
    for parameters in _units(body):
        if found and not any(one.ndim >= 2 for one in parameters):
            found[-1] += parameters
        elif parameters:
            found.append(parameters)
    return found


def _units(module: nn.Module) -> Iterator[list[nn.Parameter]]:
    yield list(module.parameters(recurse=False))
    for child in module.children():
        if type(child) in LISTS or any(_is_list_of_blocks(inner) for inner in child.children()):
            yield from _units(child)
        else:
            yield list(child.parameters())


def _is_list_of_blocks(module: nn.Module) -> bool:
    """Returns whether a list holds several modules of one kind that have parts, as a stage holds its blocks."""
    inner = list(module.children()) if type(module) in LISTS else []
    return len(inner) > 1 and len({type(one) for one in inner}) == 1 and any(True for _ in inner[0].children())


def rate_factors(
    networks: Iterable[Classifier], head: float = 1.0, layer_decay: float = 1.0
) -> dict[nn.Parameter, float]:
    """Returns each parameter's factor on the learning rate: the head's own, and less for each layer below it."""
    factors: dict[nn.Parameter, float] = {}
    for network in networks:
        factors |= dict.fromkeys(network.head.parameters(), head)
        for depth, layer in enumerate(reversed(layers(network.body)), 1):
            factors |= dict.fromkeys(layer, layer_decay**depth)
    return factors


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Returns the state of the plain network that computes the same: low-rank additions join the weights."""
    found = {name: tensor for name, tensor in state.items() if not name.endswith((DOWN, UP))}
    for name in state:
        if name.endswith(DOWN):
            layer = name.removesuffix(DOWN)
            weight, up, down = (state[f"{layer}{suffix}"] for suffix in (".weight", UP, DOWN))
            added = torch.matmul(up.flatten(1).float(), down.flatten(1).float()).view_as(weight)
            found[f"{layer}.weight"] = (weight.float() + scale * added).to(weight.dtype)
    return found
