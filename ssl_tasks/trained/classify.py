"""Classifies image files with a trained network; threads decode the next batches while one is computed."""

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from selftrain.ssl_tasks.data.decode import Decoded, Decoder, quiet_decoding, reason
from selftrain.ssl_tasks.data.sources.base import existing
from selftrain.ssl_tasks.data.sources.folder import Notes, image_files
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.reading import read_regular
from selftrain.ssl_tasks.trained.model import Trained

MAX_FILE_MB = 256  # a larger image file is not read
log = logging.getLogger("selftrain")
AHEAD = 2  # number of batches decoded ahead
PROBABILITY = "p_"  # columns p_cat, p_dog, …


def listed_images(paths: Sequence[Path]) -> list[Path]:
    """Lists the given files and every image file in the given folders, in the given order."""
    found: list[Path] = []
    notes = Notes()
    for path in paths:
        if existing(path, "the image").is_dir():
            found += [path / name for name in image_files(path, notes, (os.path.realpath(path),))]
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path} is neither a file nor a folder; expected images or folders of images")
    for note in notes.lines():
        log.warning("%s", note)
    if not found:
        places = ", ".join(map(str, paths))
        raise DataError(f"no image file in {places}; expected files such as .png or .jpg, in it or in its subfolders")
    return found


def classify(
    trained: Trained, files: Sequence[Path], max_pixels: int, batch_size: int = 256, threads: int | None = None
) -> pd.DataFrame:
    """Returns a row for each file: path, label, confidence, error where it cannot be read, and a column p_… for each
    class."""
    card = trained.card
    decoder = Decoder(card.image_size, card.in_channels, max_pixels, **(card.resizing or {}))  # type: ignore[arg-type]
    probs, errors = [np.empty((0, len(card.classes)), np.float32)], []
    for images in decoded_batches(files, decoder, batch_size, threads):
        probs.append(probabilities(trained, images))
        errors += [image.error for image in images]
    return as_table(files, card.classes, np.concatenate(probs), errors)


def decoded_batches(
    files: Sequence[Path], decoder: Decoder, batch_size: int, threads: int | None
) -> Iterator[list[Decoded]]:
    """Yields the files in order, a batch at a time, with the next ones under way."""
    under_way: deque[list[Future[Decoded]]] = deque()
    with quiet_decoding(), ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for start in range(0, len(files), batch_size):
            under_way.append([pool.submit(read_image, file, decoder) for file in files[start : start + batch_size]])
            if len(under_way) > AHEAD:
                yield [future.result() for future in under_way.popleft()]
        while under_way:
            yield [future.result() for future in under_way.popleft()]


def read_image(file: Path, decoder: Decoder) -> Decoded:
    """Reads one file as in training; returns the image or why it cannot be read."""
    try:
        data = read_regular(file, MAX_FILE_MB * 1_000_000)
    except OSError as error:
        return Decoded(error=reason(error))
    return decoder(data)


def probabilities(trained: Trained, images: Sequence[Decoded]) -> NDArray[np.float32]:
    """Returns probabilities [n, K]; rows of unreadable images are NaN."""
    card = trained.card
    # A black image replaces an unreadable one, so that the size of the batch does not change.
    pixels = np.zeros((len(images), card.image_size, card.image_size, card.in_channels), np.uint8)
    for row, image in zip(pixels, images, strict=True):
        if image.pixels is not None:
            row[...] = image.pixels
    probs = trained.logits(pixels).softmax(dim=1).cpu().numpy()
    probs[[image.error is not None for image in images]] = np.nan
    return probs


def as_table(
    files: Sequence[Path], classes: Sequence[str], probs: NDArray[np.float32], errors: Sequence[str | None]
) -> pd.DataFrame:
    """Returns the table of predictions; label and confidence are empty for unreadable files."""
    readable = ~np.isnan(probs[:, 0])
    best = np.where(readable, np.nan_to_num(probs).argmax(axis=1), -1)
    columns = {
        "path": [os.fsencode(file).decode("utf-8", "backslashreplace") for file in files],
        "label": [classes[index] if index >= 0 else None for index in best],
        "confidence": probs.max(axis=1),
        "error": list(errors),
    }
    return pd.DataFrame({**columns, **{f"{PROBABILITY}{name}": probs[:, k] for k, name in enumerate(classes)}})
