"""scikit-learn's digits as a table whose training labels are partly wrong: what DivideMix is measured on."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits

LABELED, VALIDATION = 1_000, 200  # the rest is the test set


def write_noisy_digits(path: Path, noise: float, seed: int) -> Path:
    """Writes a Parquet table; `noise` of the labelled images get another class, drawn alike among the other nine."""
    digits, generator = load_digits(), np.random.default_rng(seed)
    order = generator.permutation(len(digits.target))
    labels = digits.target[order].astype(np.int64)
    split = np.full(len(order), "test", dtype=object)
    split[:LABELED], split[LABELED : LABELED + VALIDATION] = "labeled", "validation"
    wrong = generator.permutation(LABELED)[: round(noise * LABELED)]
    labels[wrong] = (labels[wrong] + generator.integers(1, 10, len(wrong))) % 10
    images = [png(image) for image in (digits.images[order] * 255 / 16).round().astype(np.uint8)]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"id": [f"digit-{number:04d}" for number in order], "image": images, "label": labels, "split": split}
    pd.DataFrame(table).to_parquet(path, index=False)
    return path


def png(image: np.ndarray) -> bytes:
    """The bytes of a grey image file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()
