"""Every family gives a classifier for any images it can take, and says clearly what it cannot."""

import copy
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selftrain.models import ModelSettings, build_model
from selftrain.models.classifier import Classifier
from selftrain.models.noise import with_noise, without_noise
from selftrain.ssl_tasks.errors import ConfigError

ANY_SIZE = ["wrn-10-1", "small_cnn", "fast_cnn", "mlp", "mlp-3"]


def network_of(name: str, channels: int = 3, size: int = 8, classes: int = 4, **settings: Any) -> Classifier:
    torch.manual_seed(3)
    return build_model(ModelSettings(name=name, **settings), classes, channels, size)


def images_of(channels: int = 3, size: int = 8, count: int = 4) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ANY_SIZE)
@pytest.mark.parametrize(("channels", "size"), [(1, 1), (1, 8), (2, 5), (3, 33)])
def test_any_size_and_any_channels_are_taken(name: str, channels: int, size: int) -> None:
    network = network_of(name, channels, size)
    images = images_of(channels, size).to(memory_format=torch.channels_last)
    features = network.features(images)
    assert features.shape == (4, network.num_features)
    network.eval()
    torch.testing.assert_close(network(images), network.head(network.features(images)))
    network.train()(images).sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in network.parameters())


@pytest.mark.parametrize("name", [*ANY_SIZE, "torchvision:mobilenet_v3_small"])
def test_the_seed_decides_the_first_weights(name: str) -> None:
    one, same = network_of(name, size=32), network_of(name, size=32)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True))


def test_other_image_sizes_than_the_trained_one_are_taken() -> None:
    for name in ANY_SIZE:
        assert network_of(name, size=8).eval()(images_of(size=12)).shape == (4, 4)


def test_the_wide_resnet_is_the_references() -> None:
    network = network_of("wrn-28-2", size=32, classes=10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_467_610
    assert network.num_features == 128
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.001, 0.001)}
    wide = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.out_channels == 128]
    spread = torch.cat([layer.weight.flatten() for layer in wide if layer.kernel_size == (3, 3)]).std().item()
    assert spread == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.01)


def test_the_first_shortcut_is_activated_and_the_others_are_not() -> None:
    blocks = network_of("wrn-16-1").body.blocks
    assert [block.activate_shortcut for block in blocks] == [True, False, False, False, False, False]  # type: ignore[union-attr]


def test_batch_norm_momentum_is_a_setting() -> None:
    network = network_of("wrn-10-1", batch_norm_momentum=0.05)
    assert {module.momentum for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == {0.05}


@pytest.mark.parametrize(
    ("name", "noise"),
    [
        ("wrn-10-1", {"dropout": 0.5}),
        ("wrn-10-1", {"stochastic_depth": 0.5}),
        ("small_cnn", {"dropout": 0.5}),
        ("small_cnn", {"stochastic_depth": 0.5}),
        ("mlp", {"dropout": 0.5}),
        ("torchvision:mobilenet_v3_small", {"dropout": 0.5}),
        ("torchvision:efficientnet_b0", {"stochastic_depth": 0.5}),
    ],
)
def test_noise_acts_in_training_and_not_in_evaluation(name: str, noise: dict[str, Any]) -> None:
    network = network_of(name, size=32, **noise)
    freeze_batch_norm(network)
    images = images_of(size=32, count=32)
    assert not torch.equal(network(images), network(images))
    with without_noise(network):
        assert torch.equal(network(images), network(images))
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize("name", ["wrn-10-1", "small_cnn", "mlp", "torchvision:efficientnet_b0"])
def test_without_noise_settings_training_is_deterministic(name: str) -> None:
    network = network_of(name, size=32)
    freeze_batch_norm(network)
    assert torch.equal(network(images_of(size=32)), network(images_of(size=32)))


def freeze_batch_norm(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False


def test_dropout_changes_no_parameter_names() -> None:
    assert list(network_of("wrn-10-1", dropout=0.3).state_dict()) == list(network_of("wrn-10-1").state_dict())


def test_stochastic_depth_rises_to_the_last_block() -> None:
    rates = [block.depth.p for block in network_of("wrn-16-1", stochastic_depth=0.5).body.blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 32), ("densenet121", 32), ("shufflenet_v2_x0_5", 8), ("squeezenet1_1", 32)]
)
def test_torchvisions_networks_take_grey_images_and_small_ones(name: str, size: int) -> None:
    network = network_of(f"torchvision:{name}", 1, size).eval()
    images = images_of(1, size, 2)
    assert network(images).shape == (2, 4)
    assert network.features(images).shape == (2, network.num_features)


def test_small_images_keep_their_size_through_the_stem() -> None:
    small, large = network_of("torchvision:resnet18", size=32).body, network_of("torchvision:resnet18", size=64).body
    assert small.layer1(small.maxpool(small.conv1(images_of(size=32)))).shape[-1] == 32  # type: ignore[operator]
    assert large.layer1(large.maxpool(large.conv1(images_of(size=64)))).shape[-1] == 16  # type: ignore[operator]


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"name": "wrn-28"}, 8, "Did you mean 'wrn-D-K'"),
        ({"name": "smal_cnn"}, 8, "Did you mean 'small_cnn'"),
        ({"name": "wrn-27-2"}, 8, "depth is 6n \\+ 4"),
        ({"name": "wrn-28-0"}, 8, "unknown"),
        ({"name": "wrn-28-2", "width": 4}, 8, "no width to set"),
        ({"name": "mlp", "stochastic_depth": 0.1}, 8, "no residual blocks"),
        ({"name": "torchvision:resnet81"}, 8, "Did you mean 'resnet18'"),
        ({"name": "torchvision:resnet18", "stochastic_depth": 0.1}, 32, "no branches that stochastic depth could drop"),
        ({"name": "torchvision:vit_b_32"}, 33, "cannot be built for 33×33"),
        ({"name": "torchvision:inception_v3"}, 32, "cannot take 32×32 images"),
        ({"name": "timm:resnet18"}, 32, "pip install 'selftrain\\[timm\\]'"),
    ],
)
def test_what_cannot_be_built_is_said(
    settings: dict[str, Any], size: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=message):
        build_model(ModelSettings(**settings), 4, 3, size)


class DropPath(nn.Module):
    """Stochastic depth as timm has it."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, features: Tensor) -> Tensor:
        kept = (torch.rand(len(features), 1) >= self.drop_prob).float()
        return features * kept / (1 - self.drop_prob) if self.training else features


class TimmNetwork(nn.Module):
    """Stands for timm.create_model(num_classes=0), which gives pooled features. As some of timm's, it drops unless told
    not to."""

    def __init__(self, in_chans: int, drop_path_rate: float = 0.5) -> None:
        super().__init__()
        self.layer, self.depth, self.num_features = nn.Conv2d(in_chans, 6, 3), DropPath(drop_path_rate), 6

    def forward(self, images: Tensor) -> Tensor:
        return self.depth(self.layer(images).mean((2, 3)))


class TimmNetworkOfOneSize(nn.Module):
    """Another, which is built for one size and drops nothing."""

    def __init__(self, in_chans: int, img_size: int) -> None:
        super().__init__()
        self.layer, self.num_features = nn.Linear(in_chans * img_size**2, 6), 6

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timm with two networks, `tiny` and `one_size`."""
    known = {"tiny": TimmNetwork, "one_size": TimmNetworkOfOneSize}

    def create_model(name: str, pretrained: bool, num_classes: int, **options: Any) -> nn.Module:
        assert not pretrained
        assert num_classes == 0
        return known[name](**options)  # `tiny` refuses img_size, as convolutional networks do

    module = types.ModuleType("timm")
    vars(module).update(create_model=create_model, is_model=lambda name: name in known, list_models=lambda: [*known])
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.mark.usefixtures("timm")
def test_timms_networks_become_bodies() -> None:
    assert network_of("timm:tiny", 1, stochastic_depth=0.2)(images_of(1)).shape == (4, 4)
    with pytest.raises(ConfigError, match="Did you mean 'tiny'"):
        network_of("timm:tinny")
    with pytest.raises(ConfigError, match="cannot take 2×2"):
        network_of("timm:tiny", 1, 2)
    assert network_of("timm:one_size", 1)(images_of(1)).shape == (4, 4)
    with pytest.raises(ConfigError, match=r"noise that was asked for.*model\.stochastic_depth to 0"):
        network_of("timm:one_size", 1, stochastic_depth=0.2)


@pytest.mark.usefixtures("timm")
def test_timms_stochastic_depth_is_noise_like_any_other() -> None:
    network, images = network_of("timm:tiny", 1, stochastic_depth=0.5), images_of(1, count=32)
    assert not torch.equal(network(images), network(images))
    with without_noise(network):
        assert torch.equal(network(images), network(images))
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))
    with with_noise(network, 1):
        noisy = network(images)
    assert not torch.equal(noisy, network(images))


@pytest.mark.usefixtures("timm")
def test_no_stochastic_depth_switches_timms_own_default_off() -> None:
    network, images = network_of("timm:tiny", 1, stochastic_depth=0.0), images_of(1, count=32)
    assert torch.equal(network(images), network(images))


def test_networks_can_be_copied() -> None:
    network = network_of("small_cnn", dropout=0.2, stochastic_depth=0.2).eval()
    assert torch.equal(copy.deepcopy(network)(images_of()), network(images_of()))
