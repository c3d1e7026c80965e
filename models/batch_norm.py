"""Batch norm over the images of all processes."""

import importlib

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftrain.ssl_tasks.errors import ConfigError

PLAIN: set[type[nn.Module]] = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}


def synchronise_batch_norm(network: nn.Module) -> None:
    """Every batch norm within the network becomes one over all processes.

    Torch's own conversion takes whatever derives from batch norm for a plain one: timm's, which activates too, would
    lose its activation.
    """
    kinds = {type(module) for module in network.modules() if isinstance(module, _BatchNorm)}
    convert, known = nn.SyncBatchNorm.convert_sync_batchnorm, PLAIN
    if any(kind.__module__.startswith("timm.") for kind in kinds):
        layers = importlib.import_module("timm.layers")
        convert, known = layers.convert_sync_batchnorm, PLAIN | {layers.BatchNormAct2d}
    if unknown := sorted(kind.__name__ for kind in kinds - known):
        raise ConfigError(
            f"the network's batch norm is of a kind of its own ({', '.join(unknown)}), which cannot be synchronised "
            "over several GPUs. Train on one GPU (runtime.processes: 1), or use wrn-28-2 or a network of torchvision."
        )
    convert(network)
