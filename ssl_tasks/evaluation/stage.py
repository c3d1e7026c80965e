"""Runs the stage `evaluate`, which measures a model on validation and test images, attacked and corrupted ones too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import softmax

from selftrain.ssl_tasks.data.dataset import Dataset, Pool
from selftrain.ssl_tasks.data.stored_features import StoredFeatures
from selftrain.ssl_tasks.evaluation.metrics import confusion_matrix, measure
from selftrain.ssl_tasks.evaluation.robustness import attack_accuracy, corruption_accuracy
from selftrain.ssl_tasks.execution.devices import computed_by, prepare_backends
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult
from selftrain.ssl_tasks.pseudo_labels.calibration import fit_temperature
from selftrain.ssl_tasks.settings.run_config import EvaluateSettings
from selftrain.ssl_tasks.trained.model import Trained, load_card, load_trained

Split = Literal["validation", "test"]
SPLITS: tuple[Split, ...] = ("validation", "test")


def evaluate(context: StageContext) -> StageResult:
    """Writes metrics.json, predictions.parquet, confusion.json and, if requested, robustness.json."""
    settings = context.section
    assert isinstance(settings, EvaluateSettings)
    prepare_backends(load_card(context.inputs["model"].path).precision, context.runtime.threads)
    cv2.setNumThreads(0)
    dataset = Dataset.open(context.inputs["dataset"], context.cache, context.runtime)
    trained = load_trained(context.inputs["model"].path, context.runtime.device)
    pools = {split: dataset.pool(split) for split in SPLITS}
    known = {split: np.flatnonzero(pool.labels >= 0) for split, pool in pools.items()}
    stored = StoredFeatures.of_model(context.inputs, "model", context.cache)
    logits = {
        split: predict_logits(trained, pools[split], known[split], settings.batch_size, stored) for split in SPLITS
    }
    labels = {split: pools[split].labels[known[split]] for split in SPLITS}
    temperature = fit_temperature(logits["validation"], labels["validation"])
    metrics = {
        split: split_metrics(logits[split], labels[split], temperature, dataset.classes, settings) for split in SPLITS
    }
    _write_json(context.output / "metrics.json", {**metrics, "temperature": temperature})
    matrices = {
        split: confusion_matrix(labels[split], logits[split].argmax(1), dataset.num_classes).tolist()
        for split in SPLITS
    }
    _write_json(context.output / "confusion.json", {"classes": list(dataset.classes), **matrices})
    tables = [_prediction_table(split, pools[split], known[split], logits[split]) for split in SPLITS]
    pq.write_table(pa.concat_tables(tables), context.output / "predictions.parquet", compression="zstd")
    robustness = _robustness(context, settings, trained, pools, known)
    context.metrics(0, {f"{split}_accuracy": one["accuracy"] for split, one in metrics.items() if one["count"]})
    computed = computed_by(trained.device, trained.dtype)
    return StageResult(summary={**_summary(metrics), "temperature": temperature, **robustness, "computed_by": computed})


def predict_logits(
    trained: Trained, pool: Pool, index: NDArray[np.int64], batch_size: int, stored: StoredFeatures | None = None
) -> NDArray[np.float32]:
    """Returns the logits [n, K] of the images `index` of a pool, from their stored features if there are any."""
    batches = (index[start : start + batch_size] for start in range(0, len(index), batch_size))
    if stored is not None:
        at = stored.rows(pool.column("sample_id", index))
        batches = (at[start : start + batch_size] for start in range(0, len(at), batch_size))
        rows = [trained.logits_of(stored.matrix[batch]).cpu().numpy() for batch in batches]
    else:
        rows = [trained.logits(pool.images(batch)).cpu().numpy() for batch in batches]
    return np.concatenate([np.empty((0, len(trained.card.classes)), np.float32), *rows])


def split_metrics(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    temperature: float,
    classes: tuple[str, ...],
    settings: EvaluateSettings,
) -> dict[str, Any]:
    """Returns the metrics of one split, and likelihood and calibration with the fitted temperature."""
    plain = measure(softmax(logits, axis=1), labels, classes, settings.bootstrap, settings.seed)
    if not plain["count"]:
        return plain
    tempered = measure(softmax(logits / temperature, axis=1), labels, classes, resamples=0)
    return {**plain, "tempered": {name: tempered[name] for name in ("nll", "brier", "ece", "reliability")}}


def _prediction_table(split: str, pool: Pool, index: NDArray[np.int64], logits: NDArray[np.float32]) -> pa.Table:
    probs = softmax(logits.astype(np.float64), axis=1).astype(np.float32)
    return pa.table(
        {
            "split": pa.array([split] * len(index), pa.string()),
            "sample_id": pa.array(pool.sample_ids(index), pa.string()),
            "label": pa.array(pool.labels[index], pa.int32()),
            "predicted": pa.array(logits.argmax(1), pa.int32()),
            "confidence": pa.array(probs.max(axis=1), pa.float32()),
            "probs": pa.array(list(probs), pa.list_(pa.float32())),
        }
    )


def _robustness(
    context: StageContext,
    settings: EvaluateSettings,
    trained: Trained,
    pools: Mapping[Split, Pool],
    known: Mapping[Split, NDArray[np.int64]],
) -> dict[str, Any]:
    """Measures attacks and corruptions on some of the test images, or of the validation images without a test set."""
    if not settings.attacks and not settings.corruptions:
        return {}
    split: Split = "test" if len(known["test"]) else "validation"
    order = np.random.default_rng(settings.seed).permutation(known[split])
    index = np.sort(order[: settings.robustness_images])
    found: dict[str, Any] = {"split": split, "count": len(index)}
    summary: dict[str, Any] = {}
    if settings.attacks:
        prepare_backends("fp32", None)
        precise = load_trained(context.inputs["model"].path, context.runtime.device, precision="fp32")
        found["attacks"] = attack_accuracy(precise, pools[split], index, settings.attacks, settings.batch_size)
        summary["attacked_accuracy"] = {str(one["epsilon"]): one["accuracy"] for one in found["attacks"]}
        prepare_backends(trained.card.precision, None)
    if settings.corruptions:
        found["corruptions"] = corruption_accuracy(trained, pools[split], index, settings.batch_size, settings.seed)
        rows = [row["accuracy"] for rows in found["corruptions"].values() for row in rows]
        summary["corrupted_accuracy"] = float(np.mean(rows))
    _write_json(context.output / "robustness.json", found)
    return summary


def _summary(metrics: Mapping[Split, dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for split, found in metrics.items():
        summary[f"{split}_count"] = found["count"]
        for name in ("accuracy", "balanced_accuracy", "nll", "ece"):
            summary[f"{split}_{name}"] = found.get(name)
        interval = found.get("accuracy_interval")
        summary[f"{split}_interval"] = [interval["low"], interval["high"]] if interval else None
    return summary


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
