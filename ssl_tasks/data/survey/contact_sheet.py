"""A picture of what the network will see: some labelled images, and several draws of each view, side by side."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from selftrain.ssl_tasks.data.batch import View
from selftrain.ssl_tasks.data.stream.pools import Source
from selftrain.ssl_tasks.data.views.view import Augmenter, Draws
from selftrain.ssl_tasks.settings.data import AugmentSettings
from selftrain.ssl_tasks.store.artifacts import write_atomically

DRAWN: tuple[tuple[View, int], ...] = (("none", 1), ("weak", 3), ("strong", 6))  # view, columns
LEAST_SIDE = 64  # small images are enlarged, pixel by pixel, to at least this
TITLE, GAP = 16, 2


def contact_sheet(dataset: Source, augment: AugmentSettings, path: Path, rows: int = 12, seed: int = 0) -> None:
    """Writes a PNG with a row for each of some labelled images and a group of columns for each view."""
    pool = dataset.pool("labeled")
    chosen = np.linspace(0, len(pool) - 1, min(rows, len(pool))).astype(np.int64)
    images, augmenter = pool.images(chosen), Augmenter(augment, dataset.flip)
    columns = [
        (view, augmenter.view(view, images, Draws(0, len(images), seed, ("sheet", view, number))))
        for view, count in DRAWN
        for number in range(count)
    ]
    buffer = io.BytesIO()
    lay_out(columns).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def lay_out(columns: list[tuple[View, NDArray[np.uint8]]]) -> Image.Image:
    """The columns beside each other, each view's name above its first."""
    count, side = columns[0][1].shape[:2]
    scale = -(-LEAST_SIDE // side)
    cell = side * scale + GAP
    sheet = Image.new("RGB", (cell * len(columns) + GAP, cell * count + TITLE + GAP), "white")
    pen, last = ImageDraw.Draw(sheet), ""
    for number, (view, images) in enumerate(columns):
        left = GAP + number * cell
        if view != last:
            pen.text((left, 2), view, fill="black")
        last = view
        for row, image in enumerate(images):
            large = np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)
            sheet.paste(
                Image.fromarray(large.squeeze(-1) if large.shape[2] == 1 else large), (left, TITLE + row * cell)
            )
    return sheet
