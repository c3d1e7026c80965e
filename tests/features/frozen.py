"""A small network's features of small pictures, by the requests that a run makes."""

from pathlib import Path
from typing import Any

from selftrain.flows.rounds.stages import features_request, train_request
from selftrain.models import ModelSettings
from selftrain.ssl_tasks.data.stored_features import StoredFeatures
from selftrain.ssl_tasks.execution.stage import execute
from selftrain.ssl_tasks.settings.pseudo_labels import FeatureSettings
from selftrain.ssl_tasks.settings.run_config import LearnerSettings, RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact

RUNTIME = RuntimeSettings(threads=1, device="cpu")
BACKBONE = ModelSettings(name="small_cnn", width=4)


def features_of(workspace: Path, dataset: Artifact, init: Artifact | None = None, **settings: Any) -> Artifact:
    """The stage `features`, of a network with its first weights or of a trained one."""
    wanted = FeatureSettings.model_validate({"shard_size": 40, "batch_size": 16, "precision": "fp32", **settings})
    return execute(features_request("features", wanted, BACKBONE, dataset, init=init), workspace, RUNTIME).artifact


def linear(
    workspace: Path, dataset: Artifact, features: Artifact, selection: Artifact | None = None, **method: Any
) -> Artifact:
    """The stage `train` with the method `linear`."""
    learner = LearnerSettings.model_validate({"model": BACKBONE.model_dump(), "method": {"name": "linear", **method}})
    request = train_request("teacher", learner, dataset, 0, selection, features=features)
    return execute(request, workspace, RUNTIME).artifact


def opened(workspace: Path, features: Artifact) -> StoredFeatures:
    return StoredFeatures.open(features, workspace / "cache")
