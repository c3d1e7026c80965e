"""The dataset stage: a source becomes a manifest, its splits are drawn, and its images are decoded once."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from selftrain.ssl_tasks.data.decoding.images import Images
from selftrain.ssl_tasks.data.fingerprint import fingerprint
from selftrain.ssl_tasks.data.manifest import count_splits, manifest_table, part_digests, truth_table, write_table
from selftrain.ssl_tasks.data.splits.split import LABELED
from selftrain.ssl_tasks.data.survey.survey import Survey, survey
from selftrain.ssl_tasks.errors import DataError
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult
from selftrain.ssl_tasks.settings.data import DataSettings

STATISTICS_OF = 4096  # labelled images, the first in the keyed order, give mean and standard deviation
BATCH = 256


def build_dataset(context: StageContext) -> StageResult:
    """Writes manifest, hidden truth and info; parts are the digests of the four splits."""
    settings = context.section
    assert isinstance(settings, DataSettings)
    found = survey(settings, context.cache, context.runtime, context.progress)
    if found.problems:
        raise DataError("\n".join(found.problems))
    mean, std = pixel_statistics(found, context) if settings.standardise else unchanged(found.decoder.channels)
    identity: dict[str, Any] = {
        "classes": list(found.classes),
        "channels": found.decoder.channels,
        "image_size": found.decoder.image_size,
        "mean": mean,
        "std": std,
        "flip": found.source.flip,
    }
    includes = settings.split.unlabeled_includes_labeled
    counts = count_splits(found)
    info = {
        **identity,
        "unlabeled_includes_labeled": includes,
        "max_pixels": settings.max_pixels,
        "fingerprint": fingerprint(settings, context.cache),
        "counts": counts,
    }
    table = manifest_table(found)
    write_table(table, context.output / "manifest.parquet")
    write_table(truth_table(found), context.output / "truth.parquet")
    (context.output / "info.json").write_text(json.dumps(info, indent=1, sort_keys=True) + "\n")
    summary = {name: counts[name]["images"] for name in counts}
    left_out = {key: sum(entry[key] for entry in counts.values()) for key in ("unreadable", "in_held_out")}
    summary |= {"classes": len(found.classes), **left_out, "decoded": found.swept.decoded}
    return StageResult(summary, part_digests(table, identity, includes))


def unchanged(channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that leave pixels in 0 … 1."""
    return [0.0] * channels, [1.0] * channels


def pixel_statistics(found: Survey, context: StageContext) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over labelled images, on a scale where white is 1."""
    labeled = np.flatnonzero((found.split == LABELED) & found.usable)
    chosen = np.sort(labeled[np.argsort(found.samples.order[labeled], kind="stable")][:STATISTICS_OF])
    images = Images(found.source, found.decoder, context.cache, context.runtime)

    def uris(at: np.ndarray) -> list[str]:
        return found.listing.uris.take(pa.array(chosen[at])).to_pylist()

    def contents(at: np.ndarray) -> list[str]:
        return found.swept.contents.take(pa.array(chosen[at])).to_pylist()

    kept = images.keep(len(chosen), found.swept.contents.take(pa.array(chosen)).to_pylist, uris)
    total = np.zeros((2, found.decoder.channels), np.int64)
    for start in range(0, len(chosen), BATCH):
        index = np.arange(start, min(start + BATCH, len(chosen)))
        pixels = images.load(kept, index, uris, contents).astype(np.int64)
        total += np.stack([pixels.sum(axis=(0, 1, 2)), np.square(pixels).sum(axis=(0, 1, 2))])
    count = len(chosen) * found.decoder.image_size**2
    mean = total[0] / count
    std = np.sqrt(np.maximum(total[1] / count - mean**2, 0))
    return (mean / 255).round(6).tolist(), np.maximum(std / 255, 1e-3).round(6).tolist()
