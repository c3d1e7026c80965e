"""A small residual network that a CPU trains in seconds: for 8×8 digits and 32×32 photographs alike."""

from torch import Tensor, nn

from selftrain.models.classifier import Classifier
from selftrain.models.noise import StochasticDepth, drop_rates
from selftrain.models.settings import ModelSettings

WIDTH = 32


def unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Stage(nn.Module):
    """Half the size, twice the channels, then one residual unit that stochastic depth may drop.

    Pooling comes first: on CIFAR-10 and digits as accurate as pooling last, and 1.7 times as fast.
    """

    def __init__(self, inputs: int, outputs: int, drop_rate: float) -> None:
        super().__init__()
        self.shrink = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), unit(inputs, outputs))
        self.branch = unit(outputs, outputs)
        self.depth = StochasticDepth(drop_rate, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = self.shrink(x)
        return x + self.depth(self.branch(x))


class SmallCNN(nn.Module):
    """A stem, two stages, and the mean over the image."""

    def __init__(self, in_channels: int, width: int, stochastic_depth: float, stride: int) -> None:
        super().__init__()
        first, second = drop_rates(stochastic_depth, 2)
        self.stem = unit(in_channels, width, stride)
        self.stages = nn.Sequential(Stage(width, 2 * width, first), Stage(2 * width, 4 * width, second))
        self.num_features = 4 * width

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x)).mean(dim=(2, 3))


def build_small_cnn(settings: ModelSettings, num_classes: int, in_channels: int, image_size: int) -> Classifier:
    """`small_cnn`, for any image size."""
    return _classifier(settings, num_classes, in_channels, WIDTH, stride=1)


def build_fast_cnn(settings: ModelSettings, num_classes: int, in_channels: int, image_size: int) -> Classifier:
    """`fast_cnn`: half the resolution from the stem on and twice the width, four times the weights in less time.

    For photographs of 32×32 and more; 8×8 digits would be single pixels at its end.
    """
    return _classifier(settings, num_classes, in_channels, 2 * WIDTH, stride=2)


def _classifier(settings: ModelSettings, num_classes: int, in_channels: int, width: int, stride: int) -> Classifier:
    body = SmallCNN(in_channels, settings.width or width, settings.stochastic_depth, stride)
    return Classifier(body, body.num_features, num_classes, settings.dropout)
