"""Wide ResNet (arXiv 1605.07146) as in FixMatch's reference code: pre-activation, leaky slope .1, slow batch norm.

The initialisation is the reference's too: kernels normal with variance 2 / fan-out, the head Glorot-normal.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftrain.models.classifier import Classifier
from selftrain.models.noise import StochasticDepth, drop_rates
from selftrain.models.settings import ModelSettings
from selftrain.ssl_tasks.errors import ConfigError

SLOPE = 0.1
STEM = 16


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """TensorFlow's momentum .999 is torch's .001."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=1e-3)


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A kernel with He's initialisation by fan-out."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (size * size * outputs)))
    return layer


class PreActivationBlock(nn.Module):
    """Norm, activation, convolution, twice, and a shortcut. The very first block also activates its shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, activate_shortcut: bool, drop_rate: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = batch_norm(inputs), batch_norm(outputs)
        self.conv1, self.conv2 = convolution(inputs, outputs, stride=stride), convolution(outputs, outputs)
        self.shortcut = convolution(inputs, outputs, size=1, stride=stride) if inputs != outputs else nn.Identity()
        self.activate_shortcut = activate_shortcut
        self.depth = StochasticDepth(drop_rate, "row")

    def forward(self, x: Tensor) -> Tensor:
        activated = F.leaky_relu(self.norm1(x), SLOPE)
        branch = self.conv2(F.leaky_relu(self.norm2(self.conv1(activated)), SLOPE))
        return self.shortcut(activated if self.activate_shortcut else x) + self.depth(branch)


class WideResNet(nn.Module):
    """Three groups of blocks at full, half and quarter size, and the mean over the image."""

    def __init__(self, in_channels: int, depth: int, width: int, stochastic_depth: float) -> None:
        super().__init__()
        per_group = (depth - 4) // 6
        rates = iter(drop_rates(stochastic_depth, 3 * per_group))
        blocks: list[nn.Module] = []
        channels = STEM
        for group in range(3):
            outputs = STEM * width << group
            for number in range(per_group):
                stride = 2 if group and not number else 1
                blocks.append(PreActivationBlock(channels, outputs, stride, not blocks, next(rates)))
                channels = outputs
        self.stem = convolution(in_channels, STEM)
        self.blocks = nn.Sequential(*blocks)
        self.norm = batch_norm(channels)
        self.num_features = channels

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.blocks(self.stem(x))), SLOPE)
        return x.mean(dim=(2, 3))


def build_wide_resnet(settings: ModelSettings, num_classes: int, in_channels: int, image_size: int) -> Classifier:
    """`wrn-28-2` and its kin, for any image size."""
    depth, width = (int(part) for part in settings.name.split("-")[1:])
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise ConfigError(
            f"model '{settings.name}': a wide ResNet's depth is 6n + 4 (10, 16, 22, 28, 34, 40, …) and its width "
            "at least 1; say wrn-28-2, for example."
        )
    body = WideResNet(in_channels, depth, width, settings.stochastic_depth)
    network = Classifier(body, body.num_features, num_classes, settings.dropout)
    nn.init.xavier_normal_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    return network
