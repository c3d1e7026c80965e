"""Runs the stage `features`, in which a frozen network turns every image of a data set into a vector, shard by shard.

The key of a shard depends only on the backbone and the shard's images. So a change of labels, splits or classes
recomputes no shard, and new images recompute only their own shards.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from selftrain.models import build_model
from selftrain.models.classifier import Classifier
from selftrain.models.settings import Normalisation
from selftrain.models.sources import Facts
from selftrain.ssl_tasks.data.dataset import Dataset, Pool
from selftrain.ssl_tasks.data.loading import normalise
from selftrain.ssl_tasks.data.stored_features import (
    BACKBONE,
    DESCRIPTION,
    SCHEMA_VERSION,
    SHARDS,
    features_bytes,
)
from selftrain.ssl_tasks.errors import OutOfMemory, TrainingDiverged
from selftrain.ssl_tasks.execution.devices import autocast, computed_by, prepare_backends
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult, derive_seed
from selftrain.ssl_tasks.pseudo_labels.engine import saying_what_is_full
from selftrain.ssl_tasks.pseudo_labels.labeller import (
    AUGMENT,
    Batches,
    Clock,
    Shard,
    ShardCache,
    cut,
    pad,
    place,
    shard_file,
    shard_key,
)
from selftrain.ssl_tasks.settings.pseudo_labels import FrozenSettings
from selftrain.ssl_tasks.store.artifacts import digest_json, write_atomically
from selftrain.ssl_tasks.trained.model import Card, Trained, as_trained, load_network, save_trained
from selftrain.ssl_tasks.trained.weights import facts_of, normalisation_of, with_file

MULTIPLES = 8  # batch sizes are multiples of an eighth of the largest, because oneDNN keeps kernels for each size


def extract(context: StageContext) -> StageResult:
    """Runs the stage's body: a data set, and a trained model if it is the backbone → the features of all images."""
    settings = context.section
    assert isinstance(settings, FrozenSettings)
    prepare_backends(settings.precision, context.runtime.threads)
    dataset = Dataset.open(context.inputs["dataset"], context.cache, context.runtime)
    network, card = open_backbone(context, settings, dataset)
    with saying_what_is_full(context.output):
        (context.output / BACKBONE).mkdir()
        save_trained(
            context.output / BACKBONE, network, card
        )  # before its weights are converted to another number format
        trained = as_trained(network, card, context.runtime.device, settings.precision)
        return Extracting(context, settings, dataset, trained).run()


def open_backbone(context: StageContext, settings: FrozenSettings, dataset: Dataset) -> tuple[Classifier, Card]:
    """Returns the frozen network with a head of zeros: a trained model's body, or one built from the settings."""
    if "init" in context.inputs:
        network, card = load_network(context.inputs["init"].path)
        card = card.model_copy(update={"classes": dataset.classes})
    else:
        torch.manual_seed(derive_seed(context.seed, "weights"))
        weights = context.inputs.get("weights")
        model = with_file(settings.model, weights)
        network = build_model(model, dataset.num_classes, dataset.channels, dataset.image_size)
        mean, std = preprocessing(settings, facts_of(weights), dataset)
        preprocess = Normalisation(mean=mean, std=std) if (mean, std) != (dataset.mean, dataset.std) else "data"
        card = Card(
            model=settings.model.model_copy(update={"preprocess": preprocess}),
            classes=dataset.classes,
            in_channels=dataset.channels,
            image_size=dataset.image_size,
            mean=mean,
            std=std,
            precision=settings.precision,
            resizing=dataset.resizing or None,
        )
    return with_head(network, dataset.num_classes), card


def preprocessing(
    settings: FrozenSettings, facts: Facts | None, dataset: Dataset
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and deviation of the pixels: a pretrained network's own if they are known, else the data's.

    The data's depend on which images are labelled. For a network with random weights they are fixed.
    """
    channels = dataset.channels
    if facts is None and settings.model.preprocess == "backbone":
        return (0.5,) * channels, (0.5,) * channels
    chosen = normalisation_of(settings.model, facts.normalisation if facts else None, channels)
    return (dataset.mean, dataset.std) if chosen is None else (chosen.mean, chosen.std)


@torch.no_grad()
def with_head(network: Classifier, num_classes: int) -> Classifier:
    """Returns the same body with a head of zeros."""
    fresh = Classifier(network.body, network.num_features, num_classes)
    nn.init.zeros_(fresh.head.weight)
    nn.init.zeros_(fresh.head.bias)
    return fresh


@dataclass(frozen=True)
class Extracting:
    """Writes one table of features."""

    context: StageContext
    settings: FrozenSettings
    dataset: Dataset
    trained: Trained

    def run(self) -> StageResult:
        """Computes the shards that no run has computed before."""
        (self.context.output / SHARDS).mkdir()
        pool = self.dataset.pool("all")
        ids, cache = pool.column("sample_id"), ShardCache(self.context.cache / "shards")
        shards = list(self.shards(ids, pool.column("content")))
        missing = [shard for shard in shards if not self.placed(shard, cache)]
        done = len(ids) - sum(shard.rows for shard in missing)
        self.clock.spent_on("writing")
        for shard in missing:
            content = self.content(pool, shard, ids[shard.first : shard.stop].to_pylist())
            place(cache.put(shard.key, content), self.path(shard))
            self.clock.spent_on("writing")
            done += shard.rows
            self.context.progress(done, len(ids), "images")
        description = {
            "schema": SCHEMA_VERSION,
            "backbone": self.backbone,
            "features": self.trained.network.num_features,
            "shards": [{"file": shard_file(shard.number), "rows": shard.rows} for shard in shards],
        }
        write_atomically(self.context.output / DESCRIPTION, json.dumps(description, indent=1) + "\n")
        return StageResult(
            summary={
                "images": len(ids),
                "features": self.trained.network.num_features,
                "backbone": self.backbone,
                "shards": len(shards),
                "shards_reused": len(shards) - len(missing),
                "computed_by": computed_by(self.trained.device, self.trained.dtype),
                "seconds": {part: round(seconds, 3) for part, seconds in self.clock.seconds.items()},
            }
        )

    @cached_property
    def clock(self) -> Clock:
        return Clock()

    @cached_property
    def backbone(self) -> str:
        """Returns the digest of the network's body and of its input; features of the same digest are comparable."""
        card, settings = self.trained.card, self.settings
        weights = hashlib.sha256()
        for name, tensor in sorted(self.trained.network.body.state_dict().items()):
            weights.update(
                f"{name} {tuple(tensor.shape)} ".encode() + tensor.float().cpu().contiguous().numpy().tobytes()
            )
        return digest_json(
            {
                "network": [card.model.name, card.model.width, card.members],
                "weights": weights.hexdigest(),
                "image": [card.image_size, self.dataset.image_size, card.in_channels],
                "normalisation": [card.mean, card.std],
                "views": settings.views,
                "weak_views": [settings.seed, self.dataset.flip, AUGMENT.crop_padding] if settings.views > 2 else None,
                "precision": str(self.trained.dtype),
            }
        )

    def shards(self, ids: pa.ChunkedArray, contents: pa.ChunkedArray) -> Iterator[Shard]:
        """Yields the range and the key of each shard."""
        question = {"features": SCHEMA_VERSION, "backbone": self.backbone, "batch_size": self.settings.batch_size}
        for number, (first, stop) in enumerate(cut(ids.to_pylist(), self.settings.shard_size)):
            samples = ids[first:stop].to_pylist(), contents[first:stop].to_pylist()
            yield Shard(number, first, stop, shard_key(question, *samples))

    def path(self, shard: Shard) -> Path:
        return self.context.output / SHARDS / shard_file(shard.number)

    def placed(self, shard: Shard, cache: ShardCache) -> bool:
        """Puts a shard from the cache into the artifact; returns whether the cache had it."""
        found = cache.find(shard.key)
        if found is not None:
            place(found, self.path(shard))
        return found is not None

    def content(self, pool: Pool, shard: Shard, samples: Sequence[str]) -> bytes:
        """Returns the file of one shard, whose images are consecutive in the pool."""
        settings, index = self.settings, np.arange(shard.first, shard.stop)
        drawn = max(1, settings.views - 1)  # the image and weak views of it; the mirror image needs no random numbers
        threads = max(1, self.context.runtime.workers)
        batches = Batches(settings.batch_size, drawn, False, self.dataset.flip, settings.seed, threads, self.clock)
        vectors = np.empty((len(samples), self.trained.network.num_features), np.float16)
        start = 0
        for views in batches(pool, index, samples):
            mirrored = [views[0][:, :, ::-1].copy()] if settings.views > 1 else []
            vectors[start : start + len(views[0])] = self.vectors([*views, *mirrored], samples[start])
            start += len(views[0])
        return features_bytes(list(samples), vectors)

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8]) -> Tensor:
        """Returns float32 [n, D]. Normalises images as in training, in half the time of `Trained.normalise`."""
        card, device = self.trained.card, self.trained.device
        with autocast(device, self.trained.dtype):
            ready = normalise(torch.from_numpy(images), device, card.mean, card.std)
            return self.trained.network.features(ready).float()

    def vectors(self, views: Sequence[NDArray[np.uint8]], first: str) -> NDArray[np.float16]:
        """Returns [n, D]: the mean over the views of one batch."""
        count, multiple = len(views[0]), max(1, self.settings.batch_size // MULTIPLES)
        try:
            total = sum(self.features(pad(images, multiple))[:count] for images in views)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"{count} images at a time are too many: lower features.batch_size") from error
        assert isinstance(total, torch.Tensor)
        vectors = (total / len(views)).half()
        if not bool(torch.isfinite(vectors).all()):
            raise TrainingDiverged(
                f"the network's features of the batch that begins with {first} are not numbers, or too large for "
                "float16 (65,504). Check model.pretrained, or use a network whose last layer is normalised"
            )
        return vectors.cpu().numpy()
