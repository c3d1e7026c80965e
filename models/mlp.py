"""A multi-layer perceptron on pixels: `mlp` has one hidden layer as Lee (2013), `mlp-D` has D."""

from torch import Tensor, nn
from torch.nn import functional as F

from selftrain.models.classifier import Classifier
from selftrain.models.settings import ModelSettings
from selftrain.ssl_tasks.errors import ConfigError

WIDTH = 512


class MLP(nn.Module):
    """Hidden layers, each behind dropout but the first; images of another size are resized to the trained one."""

    def __init__(self, in_channels: int, image_size: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.image_size = image_size
        layers: list[nn.Module] = []
        inputs = in_channels * image_size * image_size
        for number in range(depth):
            layers += ([nn.Dropout(dropout)] if number else []) + [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers)
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.image_size, self.image_size):
            x = F.interpolate(x, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        return self.layers(x.flatten(1))


def build_mlp(settings: ModelSettings, num_classes: int, in_channels: int, image_size: int) -> Classifier:
    """`mlp` or `mlp-D`, for any image size."""
    depth = int(settings.name.partition("-")[2] or 1)
    if settings.stochastic_depth:
        raise ConfigError(
            f"model '{settings.name}' has no residual blocks, so stochastic_depth cannot act; set it to 0 "
            "or use dropout."
        )
    body = MLP(in_channels, image_size, settings.width or WIDTH, depth, settings.dropout)
    return Classifier(body, body.num_features, num_classes, settings.dropout)
