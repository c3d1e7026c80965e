"""What every network is here: a body from images to features, and a head from features to logits."""

from torch import Tensor, nn

from selftrain.models.noise import Head


class Classifier(nn.Module):
    """`network(x)` = `network.head(network.features(x))`. Its noise (dropout, stochastic depth) acts in train mode."""

    def __init__(self, body: nn.Module, num_features: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = body
        self.num_features = num_features
        self.head = Head(num_features, num_classes, dropout)

    def features(self, images: Tensor) -> Tensor:
        """[n, C, H, W] → [n, num_features]."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
