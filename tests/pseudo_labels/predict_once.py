"""Runs the stage `predict` once, in a process that a test may kill."""

import json
import resource
from pathlib import Path

from selftrain.ssl_tasks.errors import SelftrainError
from selftrain.ssl_tasks.execution.stage import StageContext
from selftrain.ssl_tasks.pseudo_labels.predict import predict
from selftrain.ssl_tasks.settings.pseudo_labels import PredictSettings
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact

SHARD_SIZE = 40


def predict_once(
    workspace: Path, dataset: Artifact, teacher: Artifact, output: Path, largest_file: int | None = None
) -> None:
    """Leaves the summary, or the error's message, in a file beside the output."""
    if largest_file is not None:  # a limit of the operating system, as real as a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    output.mkdir(parents=True)
    context = StageContext(
        section=PredictSettings(shard_size=SHARD_SIZE, batch_size=8, views=2),
        inputs={"dataset": dataset, "model": teacher},
        output=output,
        scratch=workspace / "scratch",
        cache=workspace / "cache",
        runtime=RuntimeSettings(threads=1, device="cpu"),
    )
    try:
        answer = dict(predict(context).summary)
    except SelftrainError as error:
        answer = {"error": str(error)}
    output.with_suffix(".json").write_text(json.dumps(answer))
