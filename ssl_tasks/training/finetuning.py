"""FixRes (Touvron et al. 2019, 1906.06423): which weights a fine-tuning trains, and who takes larger images at all."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from selftrain.models.classifier import Classifier
from selftrain.models.torchvision_models import check_image_size
from selftrain.ssl_tasks.errors import ConfigError

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def freeze_all_but_classifier_and_norms(network: Classifier) -> None:
    """What the larger images shift is the statistics of activations: the last layer and the norms can follow them."""
    network.requires_grad_(False)
    network.head.requires_grad_(True)
    for module in network.modules():
        if isinstance(module, NORMS):
            module.requires_grad_(True)


def refuse_one_size(network: Classifier, name: str, channels: int, image_size: int, built_for: int) -> None:
    """ConfigError for a network that cannot take images of another size than it was built for."""
    fixed = getattr(network.body, "image_size", image_size) != image_size  # it would shrink them to its own
    try:
        if not fixed:
            check_image_size(network.body, name, channels, image_size)
            return
    except ConfigError:
        pass
    raise ConfigError(
        f"finetune.image_size is {image_size}, and {name} takes images of {built_for}×{built_for} alone. Leave "
        "finetune out, or use a student that takes any size: small_cnn, wrn-28-2, torchvision:efficientnet_b0"
    )
