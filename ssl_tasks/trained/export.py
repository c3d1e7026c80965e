"""Exports a trained network as one file for other programs: torch.export (.pt2) or ONNX, with the normalisation inside.

Input `images`: uint8 [n, height, width, channels] of the card's size, any n. Output `logits`: float32 [n, classes].
"""

import importlib.util
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export, load, save

from selftrain.ssl_tasks.errors import ConfigError, SelftrainError
from selftrain.ssl_tasks.trained.model import Trained, load_trained

Format = Literal["torch", "onnx"]
TOLERANCE = 1e-4
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CARD_KEY = "model.json"  # the name of the card inside both files
Logits = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class RawImages(nn.Module):
    """A network that first computes (x / 255 - mean) / std."""

    scale: Tensor
    shift: Tensor

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.network = trained.network
        self.register_buffer("scale", trained.scale)
        self.register_buffer("shift", trained.shift)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.permute(0, 3, 1, 2).float() * self.scale + self.shift)


def export_model(folder: Path, output: Path, format: Format) -> float:
    """Writes the file and returns the largest difference of its logits from the network's, at most TOLERANCE.

    Nothing is written if they differ by more. For logits above 1, the difference is relative to the largest.
    """
    if format == "onnx":
        require_onnx()
    trained = load_trained(folder, "cpu", "fp32")
    temporary = output.with_name(f".{uuid.uuid4().hex[:8]}.{output.name}")
    try:
        program = exported_program(trained)
        logits = (
            write_onnx(program, trained, temporary) if format == "onnx" else write_torch(program, trained, temporary)
        )
        difference = largest_difference(trained, logits)
        if not difference <= TOLERANCE:  # also true for NaN
            raise SelftrainError(
                f"the exported network's outputs differ by {difference:.2g} from the model's, more than {TOLERANCE:g}; "
                "nothing was written"
            )
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def require_onnx() -> None:
    """Raises ConfigError unless the packages of the extra are installed."""
    if missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"--format onnx needs {', '.join(missing)}. Install it: pip install 'selftrain[onnx]', or "
            "export with --format torch"
        )


def exported_program(trained: Trained) -> ExportedProgram:
    """Returns the graph for any number of images."""
    # In plain memory layout, because other readers do not expect the strides of channels_last.
    module = RawImages(trained).eval().to(memory_format=torch.contiguous_format)
    return export(module, (torch.from_numpy(probe_images(trained, 2)),), dynamic_shapes=({0: Dim("n", min=1)},))


def probe_images(trained: Trained, count: int) -> NDArray[np.uint8]:
    """Returns images of noise in which every grey level occurs."""
    card = trained.card
    shape = (count, card.image_size, card.image_size, card.in_channels)
    return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


def write_torch(program: ExportedProgram, trained: Trained, path: Path) -> Logits:
    """Writes the .pt2 file, and returns the function that it holds."""
    with path.open("wb") as file:
        save(program, file, extra_files={CARD_KEY: trained.card.model_dump_json()})
    with path.open("rb") as file:
        module = load(file).module()
    return lambda images: module(torch.from_numpy(images)).detach().numpy()


def write_onnx(program: ExportedProgram, trained: Trained, path: Path) -> Logits:
    """Writes the .onnx file, and returns the function that it holds, as ONNX Runtime computes it."""
    import onnxruntime

    made = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False)
    assert made is not None, "dynamo=True gives a program"
    made.model.metadata_props[CARD_KEY] = trained.card.model_dump_json()
    made.save(path, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


def largest_difference(trained: Trained, logits: Logits) -> float:
    """Returns the largest difference over batches of several sizes; relative to the largest logit if that is above
    1."""
    worst = 0.0
    for count in (1, 2, 5):
        images = probe_images(trained, count)
        expected = trained.logits(images).numpy()
        found = np.abs(logits(images) - expected).max() / max(1.0, float(np.abs(expected).max()))
        worst = max(worst, float(found)) if np.isfinite(found) else float("inf")
    return worst
