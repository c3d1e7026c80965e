"""Batch norm over all processes: what is converted keeps saying the same, and what cannot be is refused."""

import copy
import sys
import types

import pytest
import torch
from torch import Tensor, nn

from selftrain.models import ModelSettings, build_model
from selftrain.models.classifier import synchronise_batch_norm
from selftrain.ssl_tasks.errors import ConfigError


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: the activation is a part of the norm."""

    __module__ = "timm.layers.norm_act"

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class SyncBatchNormAct(nn.SyncBatchNorm):
    """As timm's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def timms_conversion(network: nn.Module) -> None:
    """As timm's, for a network of one layer and its norm."""
    network[1] = SyncBatchNormAct(network[1].num_features).eval()  # type: ignore[operator, index]


def network_with(norm: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_plain_batch_norms_are_synchronised() -> None:
    network = build_model(ModelSettings(name="wrn-10-1"), 4)
    expected = network.eval()(images())
    synchronise_batch_norm(network)
    norms = [module for module in network.modules() if "BatchNorm" in type(module).__name__]
    assert {type(module) for module in norms} == {nn.SyncBatchNorm}
    assert torch.equal(network(images()), expected)


def test_timms_norms_keep_their_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = types.ModuleType("timm.layers")
    vars(layers).update(BatchNormAct2d=BatchNormAct2d, convert_sync_batchnorm=timms_conversion)
    monkeypatch.setitem(sys.modules, "timm", types.ModuleType("timm"))
    monkeypatch.setitem(sys.modules, "timm.layers", layers)
    network = network_with(BatchNormAct2d)
    expected = network(images())
    synchronise_batch_norm(network)
    assert isinstance(network[1], nn.SyncBatchNorm)
    assert torch.allclose(network(images()), expected)


@pytest.mark.parametrize("name", ["resnetv2_50", "efficientnet_b0", "resnet18"])
def test_timms_own_networks_say_the_same_before_and_after(name: str) -> None:
    pytest.importorskip("timm")
    network = build_model(ModelSettings(name=f"timm:{name}"), 4).eval()
    converted = copy.deepcopy(network)
    synchronise_batch_norm(converted)
    kinds = {type(module) for module in converted.modules()}
    assert nn.BatchNorm2d not in kinds
    assert any(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)
    torch.testing.assert_close(converted(images()), network(images()))


def test_a_batch_norm_of_its_own_kind_is_refused() -> None:
    class Ghost(nn.BatchNorm2d):
        """Who knows what."""

    with pytest.raises(ConfigError, match=r"of its own \(Ghost\).*runtime\.processes"):
        synchronise_batch_norm(network_with(Ghost))
