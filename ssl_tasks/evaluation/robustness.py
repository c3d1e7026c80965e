"""What a model still knows of images that were attacked (FGSM) or spoilt (common corruptions)."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from selftrain.ssl_tasks.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from selftrain.ssl_tasks.evaluation.metrics import wilson_interval
from selftrain.ssl_tasks.trained.model import Trained

Integers = NDArray[np.int64]
Tick = Callable[[str], None]


class Images(Protocol):
    """What is attacked: images by their number, and their labels."""

    @property
    def labels(self) -> Integers: ...

    def images(self, index: Integers) -> NDArray[np.uint8]: ...


def fgsm(network: nn.Module, images: Tensor, labels: Tensor, step: Tensor | float, low: Tensor, high: Tensor) -> Tensor:
    """x + ε sign(∇ₓ cross-entropy), kept between black and white (Goodfellow 2015, arXiv 1412.6572)."""
    with torch.enable_grad():
        attacked = images.detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(attacked).float(), labels), attacked)
    return torch.maximum(torch.minimum(images + step * gradient.sign(), high), low)


def attack_accuracy(
    trained: Trained, pool: Images, index: Integers, steps: Sequence[float], batch_size: int
) -> list[dict[str, Any]]:
    """Accuracy under FGSM for every ε (a share of the pixel range); give an fp32 `trained`: signs are delicate."""
    right = dict.fromkeys(steps, 0)
    low, high = trained.shift, 255 * trained.scale + trained.shift
    for chosen in _batches(index, batch_size):
        images = trained.normalise(pool.images(chosen))
        labels = torch.from_numpy(pool.labels[chosen]).to(trained.device)
        for step in steps:
            attacked = fgsm(trained.network, images, labels, step * 255 * trained.scale, low, high)
            with torch.inference_mode():
                right[step] += int((trained.network(attacked).argmax(1) == labels).sum())
    return [{"epsilon": step, **_share(right[step], len(index))} for step in steps]


def corruption_accuracy(
    trained: Trained, pool: Images, index: Integers, batch_size: int, seed: int = 0, tick: Tick = lambda _name: None
) -> dict[str, list[dict[str, Any]]]:
    """Accuracy under every corruption at each severity."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in CORRUPTIONS:
        tick(name)
        found[name] = []
        for severity in SEVERITIES:
            right = 0
            for chosen in _batches(index, batch_size):
                logits = trained.logits(corrupt(pool.images(chosen), name, severity, chosen, seed))
                right += int((logits.argmax(1).cpu().numpy() == pool.labels[chosen]).sum())
            found[name].append({"severity": severity, **_share(right, len(index))})
    return found


def corruption_errors(found: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Error rates by corruption and severity, as `mean_corruption_error` takes them."""
    return {name: [1 - one["accuracy"] for one in rows] for name, rows in found.items()}


def _share(right: int, total: int) -> dict[str, Any]:
    low, high = wilson_interval(right, total)
    return {"accuracy": right / total, "low": low, "high": high}


def _batches(index: Integers, size: int) -> list[Integers]:
    return [index[start : start + size] for start in range(0, len(index), size)]
