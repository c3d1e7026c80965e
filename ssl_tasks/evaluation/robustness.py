"""Measures a model on attacked images (FGSM) and on corrupted images in five severities.

The corruptions (noise, blur, weather, digital) follow ImageNet-C (arXiv 1903.12261). Lengths are shares of the image's
side, so that 8×8 digits and 224×224 photographs are affected equally; other strengths are the paper's for ImageNet.
Every image has its own random generator, so the batch size changes nothing.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from selftrain.ssl_tasks.evaluation.metrics import wilson_interval
from selftrain.ssl_tasks.trained.model import Trained

Image = NDArray[np.floating]  # [H, W, C] in 0 … 1
Corruption = Callable[[Image, int, Generator], Image]  # severity 0 … 4
SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(image: Image, severity: int, generator: Generator) -> Image:
    """Adds independent Gaussian noise to every channel."""
    return image + generator.normal(0, (0.08, 0.12, 0.18, 0.26, 0.38)[severity], image.shape)


def shot_noise(image: Image, severity: int, generator: Generator) -> Image:
    """Adds shot noise: Poisson counts of photons."""
    photons = (60, 25, 12, 5, 3)[severity]
    return generator.poisson(image * photons) / np.float32(photons)


def impulse_noise(image: Image, severity: int, generator: Generator) -> Image:
    """Adds salt-and-pepper noise."""
    chance, share = generator.random(image.shape), (0.03, 0.06, 0.09, 0.17, 0.27)[severity]
    return np.where(chance < share / 2, 0, np.where(chance < share, 1, image))


def defocus_blur(image: Image, severity: int, generator: Generator) -> Image:
    """Blurs with a disc that has a soft edge."""
    radius = (0.014, 0.019, 0.027, 0.036, 0.045)[severity] * image.shape[0] + 0.5
    return _filter(image, np.clip(radius + 0.5 - _distances(radius), 0, 1))


def motion_blur(image: Image, severity: int, generator: Generator) -> Image:
    """Blurs along a line at a random angle."""
    half = (0.04, 0.06, 0.08, 0.11, 0.14)[severity] * image.shape[0] / 2 + 0.5
    angle = generator.uniform(0, np.pi)
    y, x = _grid(half)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return _filter(image, np.clip(half + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1))


def zoom_blur(image: Image, severity: int, generator: Generator) -> Image:
    """Averages several magnifications."""
    side = np.array(image.shape[:2])
    zooms = np.linspace(1, (1.11, 1.16, 1.21, 1.26, 1.31)[severity], 8)
    total = np.zeros_like(image)
    for zoom in zooms:
        centre = (side[::-1] - 1) / 2
        matrix = np.array([[zoom, 0, centre[0] * (1 - zoom)], [0, zoom, centre[1] * (1 - zoom)]])
        total += _warp(image, matrix)
    return total / len(zooms)


def fog(image: Image, severity: int, generator: Generator) -> Image:
    """Adds a cloud whose spectrum falls as a power of the frequency."""
    thickness, roughness = (1.5, 2.0, 2.5, 2.5, 3.0)[severity], (2.0, 2.0, 1.7, 1.5, 1.4)[severity]
    cloud = _cloud(image.shape[0], image.shape[1], roughness, generator)[..., None]
    brightest = max(float(image.max()), 1e-3)
    return (image + thickness * cloud) * (brightest / (brightest + thickness))


def brightness(image: Image, severity: int, generator: Generator) -> Image:
    """Raises the brightest channel of each pixel, and the others in proportion."""
    value = image.max(axis=2, keepdims=True)
    raised = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[severity], 1)
    return np.where(value > 0, image * raised / np.maximum(value, 1e-6), raised)


def contrast(image: Image, severity: int, generator: Generator) -> Image:
    """Moves the image towards its mean colour."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * np.float32((0.4, 0.3, 0.2, 0.1, 0.05)[severity]) + mean


def pixelate(image: Image, severity: int, generator: Generator) -> Image:
    """Reduces the number of pixels."""
    height, width = image.shape[:2]
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity]
    small = (max(1, round(width * share)), max(1, round(height * share)))
    return _resize(_resize(image, small, cv2.INTER_AREA), (width, height), cv2.INTER_NEAREST)


def jpeg(image: Image, severity: int, generator: Generator) -> Image:
    """Compresses the image as JPEG."""
    quality = (25, 18, 15, 10, 7)[severity]
    _, code = cv2.imencode(".jpg", _to_bytes(image)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    flag = cv2.IMREAD_COLOR if image.shape[2] == 3 else cv2.IMREAD_GRAYSCALE
    decoded = _array(cv2.imdecode(code, flag))
    return decoded.reshape(image.shape)[..., ::-1] / np.float32(255)


CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, shot_noise, impulse_noise),
        *(defocus_blur, motion_blur, zoom_blur),
        *(fog, brightness, contrast),
        *(pixelate, jpeg),
    )
}


def corrupt(images: NDArray[np.uint8], name: str, severity: int, index: NDArray[np.int64], seed: int = 0) -> NDArray:
    """Corrupts uint8 [n, H, W, C]; the images' numbers in `index` and `seed` determine the randomness."""
    function, code = CORRUPTIONS[name], zlib.crc32(name.encode())
    corrupted = [
        _to_bytes(
            function(image.astype(np.float32) / 255, severity - 1, np.random.default_rng([seed, code, severity, one]))
        )
        for image, one in zip(images, index.tolist(), strict=True)
    ]
    return np.stack(corrupted)


def _array(image: object) -> Image:
    """Returns an array for OpenCV, which drops a last axis of one channel; callers restore it."""
    return np.asarray(image)


def _to_bytes(image: Image) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8))


def _grid(radius: float) -> tuple[Image, Image]:
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    return y, x


def _distances(radius: float) -> Image:
    return np.hypot(*_grid(radius))


def _filter(image: Image, kernel: Image) -> Image:
    weights = (kernel / kernel.sum()).astype(np.float32)
    return _array(cv2.filter2D(image, -1, weights, borderType=cv2.BORDER_REFLECT_101)).reshape(image.shape)


def _warp(image: Image, matrix: NDArray[np.float64]) -> Image:
    size = (image.shape[1], image.shape[0])
    moved = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return _array(moved).reshape(image.shape)


def _resize(image: Image, size: tuple[int, int], interpolation: int) -> Image:
    return _array(cv2.resize(image, size, interpolation=interpolation)).reshape(size[1], size[0], image.shape[2])


def _cloud(height: int, width: int, roughness: float, generator: Generator) -> Image:
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(generator.normal(size=(height, width))) / frequency**roughness
    spectrum[0, 0] = 0
    cloud = np.fft.irfft2(spectrum, (height, width))
    return ((cloud - cloud.min()) / max(float(np.ptp(cloud)), 1e-9)).astype(np.float32)


Integers = NDArray[np.int64]
Tick = Callable[[str], None]


class Images(Protocol):
    """The images to attack, by number, and their labels."""

    @property
    def labels(self) -> Integers: ...

    def images(self, index: Integers) -> NDArray[np.uint8]: ...


def fgsm(network: nn.Module, images: Tensor, labels: Tensor, step: Tensor | float, low: Tensor, high: Tensor) -> Tensor:
    """Returns x + ε sign(∇ₓ cross-entropy), clipped to black and white (FGSM: Goodfellow 2015, arXiv 1412.6572)."""
    with torch.enable_grad():
        attacked = images.detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(attacked).float(), labels), attacked)
    return torch.maximum(torch.minimum(images + step * gradient.sign(), high), low)


def attack_accuracy(
    trained: Trained, pool: Images, index: Integers, steps: Sequence[float], batch_size: int
) -> list[dict[str, Any]]:
    """Measures accuracy under FGSM for every ε, a share of the pixel range. `trained` must be fp32 for exact signs."""
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
    """Measures accuracy under every corruption at each severity."""
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
    """Returns error rates by corruption and severity, as `mean_corruption_error` takes them."""
    return {name: [1 - one["accuracy"] for one in rows] for name, rows in found.items()}


def _share(right: int, total: int) -> dict[str, Any]:
    low, high = wilson_interval(right, total)
    return {"accuracy": right / total, "low": low, "high": high}


def _batches(index: Integers, size: int) -> list[Integers]:
    return [index[start : start + size] for start in range(0, len(index), size)]
