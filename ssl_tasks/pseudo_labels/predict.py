"""Runs the stage `predict`, in which teachers label the unlabelled images shard by shard, and the validation images.

Ray workers label shards with the same code.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from selftrain.models.noise import with_noise
from selftrain.ssl_tasks.data.dataset import Dataset, Pool
from selftrain.ssl_tasks.data.order import key_of
from selftrain.ssl_tasks.data.stored_features import StoredFeatures
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.cluster import at_hand, spread
from selftrain.ssl_tasks.execution.devices import computed_by, prepare_backends
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult
from selftrain.ssl_tasks.pseudo_labels import schema
from selftrain.ssl_tasks.pseudo_labels.calibration import (
    LOG_RANGE_OF_TEACHERS,
    calibration,
    fit_temperature,
    fitting_half,
)
from selftrain.ssl_tasks.pseudo_labels.engine import saying_what_is_full
from selftrain.ssl_tasks.pseudo_labels.labeller import (
    AUGMENT,
    Batches,
    Clock,
    Columns,
    Labeller,
    Opinion,
    Shard,
    ShardCache,
    class_means,
    cut,
    judge,
    place,
    shard_file,
    shard_key,
)
from selftrain.ssl_tasks.pseudo_labels.schema import (
    held_out_table,
    parquet_bytes,
    prediction_table,
    unreadable_table,
)
from selftrain.ssl_tasks.settings.pseudo_labels import PredictSettings
from selftrain.ssl_tasks.store.artifacts import write_atomically
from selftrain.ssl_tasks.trained import trained_digest
from selftrain.ssl_tasks.trained.model import Trained, load_trained
from selftrain.ssl_tasks.training.launch import from_json, to_json

AT_ONCE = 65_536  # ids that are Python objects at the same time


def predict(context: StageContext) -> StageResult:
    """Runs the stage's body: dataset, model and, for an ensemble, model_2 … → the table of predictions.

    If the features that a linear model reads are stored (features, features_2 …), no network recomputes them.
    """
    with saying_what_is_full(context.output):
        return open_predicting(context).run()


def open_predicting(context: StageContext) -> "Predicting":
    """Opens the data set and the teachers of a context."""
    settings = context.section
    assert isinstance(settings, PredictSettings)
    prepare_backends(settings.precision, context.runtime.threads)
    dataset = Dataset.open(context.inputs["dataset"], context.cache, context.runtime)
    roles = [role for role in context.inputs if role.startswith("model")]
    ordered = sorted(roles, key=lambda role: (len(role), role))  # model_2 < model_10
    models = [context.inputs[role] for role in ordered]
    teachers = [load_trained(model.path, context.runtime.device, settings.precision) for model in models]
    for number, teacher in enumerate(teachers, 1):
        check_classes(f"teacher {number}", teacher, dataset)
    digests = [trained_digest(model.path) for model in models]
    stored = [StoredFeatures.of_model(context.inputs, role, context.cache) for role in ordered]
    return Predicting(context, settings, dataset, teachers, digests, stored)


def check_classes(role: str, teacher: Trained, dataset: Dataset) -> None:
    """Raises ConfigError if a teacher's classes are not those of the data set."""
    if teacher.card.classes != dataset.classes:
        raise ConfigError(
            f"{role} was trained on {len(teacher.card.classes)} classes "
            f"({', '.join(teacher.card.classes[:5])} …), the data "
            f"{len(dataset.classes)} ({', '.join(dataset.classes[:5])} …); expected the same names in the same order. "
            "Set data.classes to the teacher's, or train a teacher on this data"
        )


@dataclass(frozen=True)
class Predicting:
    """Writes one table of predictions."""

    context: StageContext
    settings: PredictSettings
    dataset: Dataset
    teachers: Sequence[Trained]
    digests: Sequence[str]  # the teachers' digests
    stored: Sequence[StoredFeatures | None]  # features that a teacher reads instead of images

    def run(self) -> StageResult:
        """Predicts the validation images, which decide the temperature, and then the unlabelled images."""
        temperature, means = self.predict_held_out()
        shards, reused = self.predict_unlabeled(temperature, means)
        description = {**self.description(temperature), "parts": self.parts, "shards": shards}
        write_atomically(self.context.output / schema.DESCRIPTION, json.dumps(description, indent=1) + "\n")
        unreadable = sum(shard["rows"] for shard in shards if shard["first"] is None)
        return StageResult(
            summary={
                "images": sum(shard["rows"] for shard in shards) - unreadable,
                "unreadable": unreadable,
                "shards": len(shards),
                "shards_reused": reused,
                "temperature": temperature,
                "computed_by": self.computed_by,
                "seconds": {part: round(seconds, 3) for part, seconds in self.clock.seconds.items()},
            }
        )

    @cached_property
    def clock(self) -> Clock:
        return Clock()

    @cached_property
    def labeller(self) -> Labeller:
        return Labeller(self.teachers, self.settings.batch_size)

    @property
    def computed_by(self) -> dict[str, str]:
        """Returns the device and the number format, on which the last digits depend."""
        return computed_by(self.teachers[0].device, *(teacher.dtype for teacher in self.teachers))

    @property
    def by_ray(self) -> bool:
        """Returns whether a Ray cluster labels the shards."""
        return self.context.runtime.task_runner == "ray"

    @property
    def stored_classes(self) -> int:
        return schema.stored_classes(self.dataset.num_classes, self.settings.top_k)

    @property
    def parts(self) -> dict[str, str]:
        """Returns the digests of the images in the table."""
        return {name: self.context.inputs["dataset"].parts[name] for name in ("unlabeled", "validation")}

    def description(self, temperature: float) -> dict[str, Any]:
        """Returns the description stored with every shard."""
        return {
            "schema": schema.SCHEMA_VERSION,
            "classes": list(self.dataset.classes),
            "stored_classes": self.stored_classes,
            "teachers": list(self.digests),
            "temperature": temperature,
            "views": self.settings.views,
        }

    def question(self, temperature: float) -> dict[str, Any]:
        """Returns everything that a shard's contents depend on, except its samples."""
        each = self.labeller.temperatures if self.teachers else None
        read = {"features": [one and one.artifact.digest for one in self.stored]} if any(self.stored) else {}
        weak = {"seed": self.settings.seed, "flip": self.dataset.flip, "crop_padding": AUGMENT.crop_padding}
        return {
            **self.description(temperature),
            "weak_views": weak if self.settings.views > 1 or self.settings.noise else None,
            "noise": AUGMENT.identity() if self.settings.noise else None,
            "precision": [str(teacher.dtype) for teacher in self.teachers],
            "batch_size": self.settings.batch_size,  # matrix products round differently with their size
            "image": [self.dataset.image_size, self.dataset.channels],
            "class_means": self.parts["validation"],
            **read,
            **({} if each is None else {"temperatures": each.tolist()}),
        }

    def opinions(self, pool: Pool, index: NDArray[np.int64], ids: Sequence[str]) -> Iterator[Opinion]:
        """Yields the teachers' predictions of images, batch by batch."""
        batches = Batches(
            self.settings.batch_size,
            self.settings.views,
            self.settings.noise,
            self.dataset.flip,
            self.settings.seed,
            max(1, self.context.runtime.workers),
            self.clock,
        )
        size, samples = self.settings.batch_size, pool.column("sample_id", index) if any(self.stored) else None
        rows = [None if one is None else (one.matrix, one.rows(samples)) for one in self.stored]
        views_of = itertools.repeat([]) if all(self.stored) else batches(pool, index, ids)
        for start, views in zip(range(0, len(ids), size), views_of, strict=False):
            kept = [None if one is None else one[0][one[1][start : start + size]] for one in rows]
            with self.noise(ids[start]):
                opinion = self.labeller.opinion(views, kept)
            yield opinion

    def noise(self, first: str) -> contextlib.AbstractContextManager[Any]:
        """Switches the teachers' own dropout on if the settings ask for it; the batch's first image seeds it."""
        if not self.settings.noise:
            return contextlib.nullcontext()
        noisy, seed = contextlib.ExitStack(), key_of("noise", self.settings.seed, first)
        for teacher in self.teachers:
            noisy.enter_context(with_noise(teacher.network, seed))
        return noisy

    def predict_held_out(self) -> tuple[float, Tensor]:
        """Writes validation.parquet and calibration.json; returns the temperature and the classes' mean features."""
        pool = self.dataset.pool("validation")
        known = np.flatnonzero(pool.labels >= 0)
        ids, labels = pool.sample_ids(known), pool.labels[known]
        opinion = Opinion.joined([self.nothing(), *self.opinions(pool, known, ids)])
        fits = self.settings.temperature in ("fit", "each")
        fitted = fitting_half(ids) if fits else np.zeros(len(ids), bool)
        if self.settings.temperature == "each" and fitted.any():
            opinion = self.calibrate_each(opinion, labels, fitted)
        temperature = self.calibrate(opinion.log_probs.double().cpu().numpy(), labels, fitted)
        means = class_means(opinion.features, labels, self.dataset.num_classes)
        table = prediction_table(ids, [self.judged(opinion, temperature, means)])
        content = parquet_bytes(held_out_table(table, labels, fitted), self.description(temperature))
        write_atomically(self.context.output / schema.VALIDATION, content)
        return temperature, means

    def nothing(self) -> Opinion:
        """Returns the predictions for no image."""
        return self.labeller.nothing(self.settings.views)

    def calibrate_each(self, opinion: Opinion, labels: NDArray[np.int64], fitted: NDArray[np.bool_]) -> Opinion:
        """Returns the opinion with a fitted temperature per teacher and view, which the labeller uses from now on."""
        alone = opinion.alone.double().cpu().numpy()[:, fitted]
        found = [fit_temperature(one, labels[fitted], LOG_RANGE_OF_TEACHERS) for one in alone]
        self.labeller.temperatures = torch.tensor(found)
        return replace(opinion, temperatures=self.labeller.temperatures)

    def calibrate(self, log_probs: NDArray[np.float64], labels: NDArray[np.int64], fitted: NDArray[np.bool_]) -> float:
        """Returns the temperature, fitted if the settings ask for it; its effect is measured on other images."""
        temperature = self.settings.temperature
        if isinstance(temperature, str):
            if not fitted.any():
                raise ConfigError(
                    f"predict.temperature={temperature} needs validation images, and there are none. Set "
                    "data.split.validation, or a number"
                )
            best = fit_temperature(log_probs[fitted], labels[fitted], LOG_RANGE_OF_TEACHERS)
            temperature = float(f"{best:.4g}")
        report = {
            "temperature": temperature,
            "fitted_on": int(fitted.sum()),
            "before": calibration(log_probs[~fitted], labels[~fitted], 1.0),
            "after": calibration(log_probs[~fitted], labels[~fitted], temperature),
        }
        write_atomically(self.context.output / schema.CALIBRATION, json.dumps(report, indent=1) + "\n")
        return temperature

    def predict_unlabeled(self, temperature: float, means: Tensor) -> tuple[list[dict[str, Any]], int]:
        """Writes the shards of the artifact; returns their descriptions and the number of reused shards."""
        pool = self.dataset.pool("unlabeled")
        ids, contents = pool.column("sample_id"), pool.column("content")
        cache, folder = ShardCache(self.context.cache / "shards"), self.context.output / "shards"
        folder.mkdir()
        shards, missing = list(self.shards(ids, contents, temperature)), []
        for shard in shards:
            if (path := cache.find(shard.key)) is not None:
                place(path, folder / shard_file(shard.number))
            else:
                missing.append(shard)
        self.clock.spent_on("writing")
        done = len(ids) - sum(shard.rows for shard in missing)
        label = self.label_by_ray if self.by_ray and missing else self.label_here
        for shard, content in label(pool, ids, missing, temperature, means):
            place(cache.put(shard.key, content), folder / shard_file(shard.number))
            self.clock.spent_on("writing")
            done += shard.rows
            self.context.progress(done, len(ids), "images")
        described = [{"file": shard_file(one.number), "rows": one.rows, "first": one.first} for one in shards]
        return described + self.write_unreadable(len(shards), temperature), len(shards) - len(missing)

    def shards(self, ids: pa.ChunkedArray, contents: pa.ChunkedArray, temperature: float) -> Iterator[Shard]:
        """Returns the range of each shard, and the key of its result."""
        question = self.question(temperature)
        starts = range(0, len(ids), AT_ONCE)
        one_by_one = (sample for start in starts for sample in ids[start : start + AT_ONCE].to_pylist())
        for number, (first, stop) in enumerate(cut(one_by_one, self.settings.shard_size)):
            samples = ids[first:stop].to_pylist(), contents[first:stop].to_pylist()
            yield Shard(number, first, stop, shard_key(question, *samples))

    def label_here(
        self, pool: Pool, ids: pa.ChunkedArray, missing: Sequence[Shard], temperature: float, means: Tensor
    ) -> Iterator[tuple[Shard, bytes]]:
        """Yields each shard's content, one after the other."""
        for shard in missing:
            yield shard, self.content(pool, shard.first, ids[shard.first : shard.stop].to_pylist(), temperature, means)

    def label_by_ray(
        self, _pool: Pool, ids: pa.ChunkedArray, missing: Sequence[Shard], temperature: float, means: Tensor
    ) -> Iterator[tuple[Shard, bytes]]:
        """Yields each shard's content from the machine that labelled it, in the order of arrival."""
        shared = {
            "context": to_json(self.context),
            "question": self.question(temperature),
            "temperature": temperature,
            "means": means.cpu().numpy(),
            "temperatures": None if self.labeller.temperatures is None else self.labeller.temperatures.tolist(),
        }
        items = ((shard, (shard.first, ids[shard.first : shard.stop].to_pylist())) for shard in missing)
        for shard, content in spread(
            "selftrain.ssl_tasks.pseudo_labels.predict:label_shard", shared, items, self.context.runtime
        ):
            self.clock.spent_on("waiting for Ray")
            yield shard, content

    def content(self, pool: Pool, first: int, samples: Sequence[str], temperature: float, means: Tensor) -> bytes:
        """Returns the file of one shard, whose images are consecutive in the pool."""
        opinions = self.opinions(pool, np.arange(first, first + len(samples)), samples)
        table = prediction_table(samples, [self.judged(opinion, temperature, means) for opinion in opinions])
        return parquet_bytes(table, self.description(temperature))

    def judged(self, opinion: Opinion, temperature: float, means: Tensor) -> Columns:
        return judge(opinion, temperature, self.stored_classes, means)

    def write_unreadable(self, number: int, temperature: float) -> list[dict[str, Any]]:
        """Writes the last shard: unreadable images. It may be empty if it is the only one: a table needs a file."""
        unreadable = self.dataset.unreadable("unlabeled")
        if number and not unreadable:
            return []
        table = unreadable_table(unreadable, self.stored_classes < self.dataset.num_classes)
        path = self.context.output / "shards" / shard_file(number)
        write_atomically(path, parquet_bytes(table, self.description(temperature)))
        return [{"file": path.name, "rows": len(unreadable), "first": None}]


def label_shard(shared: Mapping[str, Any], images: tuple[int, Sequence[str]]) -> bytes:
    """Returns the file of one shard; `images` are the position of its first image and the ids of all."""
    predicting, pool = opened(json.dumps(shared["context"]))
    if shared["temperatures"] is not None:
        predicting.labeller.temperatures = torch.tensor(shared["temperatures"])
    refuse_other_answers(shared["question"], predicting.question(shared["temperature"]))
    means = torch.from_numpy(shared["means"].copy()).to(predicting.teachers[0].device)
    return predicting.content(pool, *images, shared["temperature"], means)


@lru_cache(maxsize=1)
def opened(asked: str) -> tuple[Predicting, Pool]:
    """Returns the teachers and images, which are kept for the worker's next shard."""
    context = from_json(json.loads(asked))
    threads = context.runtime.threads or 1  # as Ray assumes: cluster.cpus_of
    here = at_hand(replace(context, runtime=context.runtime.model_copy(update={"threads": threads}), events=None))
    predicting = open_predicting(here)
    return predicting, predicting.dataset.pool("unlabeled")


def refuse_other_answers(asked: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises ConfigError if this machine would compute a shard differently: the same key must mean the same bytes."""
    if others := sorted(name for name in asked if asked[name] != here[name]):
        name = others[0]
        raise ConfigError(
            f"this machine would answer with {name} {here[name]}, the run asked for {asked[name]}. Set "
            "predict.precision and runtime.device (GPUs: runtime.gpus_per_task) so that both are alike"
        )
