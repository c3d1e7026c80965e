"""Applies spooled operations to MLflow; every operation is safe to repeat.

Only creating something could happen twice in MLflow, so a tag of ours is looked up first. Metrics have their own time
stamp, by which MLflow recognises a repetition. Parameters, tags, files and ends do not change when written again.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.tracking.entities import (
    MODEL_STAGES,
    consumed_data,
    consumed_models,
    dataset_input,
    find_model,
    input_datasets,
    input_models,
    measured_on,
    model_files,
    numbers,
    output_models,
    preview_csv,
    promote,
    small_files,
    version_of,
)
from selftrain.ssl_tasks.tracking.model_card import describe
from selftrain.ssl_tasks.tracking.spool import Operation

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities import Run as MlflowRun

LOCAL = "selftrain.local"  # tag with the local id of a run
RECORDED = "selftrain.recorded"  # tag of a run that was recorded after its end
OF_A_ROUND = re.compile(
    r"evaluate-(teacher|\d+)"
)  # neither other ensemble members, nor a student before its fine-tuning
SOON_SECONDS, PATIENCE_SECONDS = 2.0, 60.0


class Later(Exception):
    """Raised for an operation that must wait for another process's operation."""


class Applier:
    """Applies operations to one server. `ids` are the runs known so far; `learned` are new ones.

    `is_pending` says whether another process of this workspace still has to send the run that made an artifact.
    """

    def __init__(
        self, client: "MlflowClient", experiment: str, ids: dict[str, str], is_pending: Callable[[Artifact], bool]
    ) -> None:
        self.client, self.experiment, self.ids, self.is_pending = client, experiment, dict(ids), is_pending
        self.learned: dict[str, str] = {}
        self.champion = ""  # the sentence about a model of this spool that became champion
        self.kinds: dict[str, Callable[[Operation], None]] = {
            "header": lambda _operation: None,
            "run": self._run,
            "params": self._params,
            "tags": self._tags,
            "supersedes": self._supersedes,
            "metrics": self._metrics,
            "text": self._text,
            "file": self._file,
            "artifact": self._artifact,
            "reused": self._reused,
            "promote": self._promote,
            "end": self._end,
        }

    def apply(self, operation: Operation) -> None:
        """Applies one operation."""
        self.kinds[operation["kind"]](operation)

    def find_run(self, local: str) -> str | None:
        """Returns MLflow's id of a local run, from memory or by its tag; None if there is none."""
        if local not in self.ids:
            found = self.client.search_runs([self.experiment], f"tags.`{LOCAL}` = '{local}'", max_results=1)
            if not found:
                return None
            self._learn(local, found[0].info.run_id)
        return self.ids[local]

    def run_id(self, local: str) -> str:
        """Returns MLflow's id of a local run that must exist."""
        found = self.find_run(local)
        if found is None:
            raise LookupError(f"no MLflow run has the local id {local}")
        return found

    def _learn(self, local: str, run_id: str) -> None:
        self.ids[local] = self.learned[local] = run_id

    def _run(self, operation: Operation) -> None:
        if self.find_run(operation["run"]) is not None:
            return
        tags = {LOCAL: operation["run"], **operation["tags"]}
        if operation["parent"] is not None:
            tags["mlflow.parentRunId"] = self.run_id(operation["parent"])
        made = self.client.create_run(
            self.experiment, start_time=_milliseconds(operation), tags=tags, run_name=operation["name"]
        )
        self._learn(operation["run"], made.info.run_id)

    def _params(self, operation: Operation) -> None:
        from mlflow.entities import Param

        params = [Param(key[:250], value[:6000]) for key, value in operation["params"].items()]
        self.client.log_batch(self.run_id(operation["run"]), params=params)

    def _tags(self, operation: Operation) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(key[:250], str(value)[:5000]) for key, value in operation["tags"].items()]
        self.client.log_batch(self.run_id(operation["run"]), tags=tags)

    def _supersedes(self, operation: Operation) -> None:
        """Links an attempt to the dead attempt that it resumes."""
        before = self.find_run(operation["before"]) or operation["before"]
        self._tags({"run": operation["run"], "tags": {"selftrain.supersedes": before}})

    def _metrics(self, operation: Operation) -> None:
        from mlflow.entities import Metric

        self.client.log_batch(self.run_id(operation["run"]), metrics=[Metric(*row) for row in operation["rows"]])

    def _text(self, operation: Operation) -> None:
        self.client.log_text(self.run_id(operation["run"]), operation["text"], operation["file"])

    def _file(self, operation: Operation) -> None:
        self.client.log_artifact(self.run_id(operation["run"]), operation["path"], operation["folder"] or None)

    def _end(self, operation: Operation) -> None:
        self.client.set_terminated(self.run_id(operation["run"]), operation["ending"], _milliseconds(operation))

    def _artifact(self, operation: Operation) -> None:
        run_id = self.run_id(operation["run"])
        self._describe(run_id, _artifact_of(operation), operation)
        run = self.client.get_run(run_id)
        parent = run.data.tags.get("mlflow.parentRunId")
        if parent is not None:
            self._scores(parent, run.info.run_name or "", _artifact_of(operation), operation)

    def _describe(self, run_id: str, artifact: Artifact, operation: Operation) -> None:
        """Records the inputs, outputs, numbers and small files of the run that made an artifact."""
        from mlflow.entities import LoggedModelInput

        self._tag_run(run_id, artifact)
        run = self.client.get_run(run_id)
        there = input_models(run)
        models = [model for digest in consumed_models(artifact).values() if (model := self._model(digest)) is not None]
        new = [LoggedModelInput(one) for one in dict.fromkeys(model.model_id for model in models) if one not in there]
        seen = {(one.name, one.digest) for one in input_datasets(run)}
        entities = [dataset_input(one) for one in consumed_data(artifact)]
        datasets = [one for one in entities if (one.dataset.name, one.dataset.digest) not in seen]
        if datasets or new:
            self.client.log_inputs(run_id, datasets=datasets, models=new)
        if artifact.stage in MODEL_STAGES:
            self._log_model(run_id, artifact)
        self._summary(run_id, artifact, models[0] if artifact.stage == "evaluate" and models else None)
        for path in small_files(artifact):
            self.client.log_artifact(run_id, str(path))
        if (csv := preview_csv(artifact)) is not None:
            self.client.log_text(run_id, csv, "preview.csv")

    def _tag_run(self, run_id: str, artifact: Artifact) -> None:
        from mlflow.entities import RunTag

        tags = {"stage": artifact.stage, "key": artifact.key, "digest": artifact.digest, "artifact": str(artifact.path)}
        self.client.log_batch(run_id, tags=[RunTag(f"selftrain.{name}", value) for name, value in tags.items()])

    def _summary(self, run_id: str, artifact: Artifact, model: "LoggedModel | None") -> None:
        """Records a stage's numbers; those of an evaluation also belong to the evaluated model."""
        from mlflow.entities import Metric

        at = int(artifact.manifest["finished"] * 1000)
        values = numbers(artifact.summary) | {"seconds": float(artifact.manifest["seconds"])}
        owner: dict[str, Any] = {"model_id": model.model_id, "run_id": run_id} if model is not None else {}
        metrics = [Metric(name, value, at, 0, **owner, **measured_on(artifact, name)) for name, value in values.items()]
        self.client.log_batch(run_id, metrics=metrics)

    def _scores(self, parent: str, name: str, artifact: Artifact, operation: Operation) -> None:
        """Records the accuracies of a round's model on the pipeline run, by round."""
        from mlflow.entities import Metric

        if artifact.stage != "evaluate" or not OF_A_ROUND.fullmatch(name):
            return
        at = int(artifact.manifest["finished"] * 1000)
        names = [name for name in ("validation_accuracy", "test_accuracy") if artifact.summary.get(name) is not None]
        metrics = [Metric(name, float(artifact.summary[name]), at, operation["round"]) for name in names]
        self.client.log_batch(parent, metrics=metrics)

    def _model(self, digest: str) -> "LoggedModel | None":
        return find_model(self.client, [self.experiment], digest)

    def _log_model(self, run_id: str, artifact: Artifact) -> "LoggedModel":
        """Logs the model of a run; resumes an upload that was interrupted."""
        from mlflow.entities import LoggedModelOutput

        found = self.client.search_logged_models(
            [self.experiment],
            filter_string=f"tags.`selftrain.digest` = '{artifact.digest}' AND source_run_id = '{run_id}'",
        )
        model = found[0] if found else self._create_model(run_id, artifact)
        if model.status != "READY":
            for path in model_files(artifact):
                self.client.log_model_artifact(model.model_id, str(path))
            model = self.client.finalize_logged_model(model.model_id, "READY")
        if model.model_id not in output_models(self.client.get_run(run_id)):
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return model

    def _create_model(self, run_id: str, artifact: Artifact) -> "LoggedModel":
        name = self.client.get_run(run_id).info.run_name or artifact.stage
        return self.client.create_logged_model(
            self.experiment,
            name=name.replace("/", "-").replace(":", "-").replace(".", "-").replace("%", "-"),
            source_run_id=run_id,
            model_type="classifier",
            tags={"selftrain.digest": artifact.digest, "selftrain.key": artifact.key},
        )

    def _reused(self, operation: Operation) -> None:
        """Links to the run that computed a reused artifact; records that run first if the server does not know it."""
        from mlflow.entities import LoggedModelInput, RunTag

        parent, artifact = self.run_id(operation["run"]), _artifact_of(operation)
        filters = f"tags.`selftrain.key` = '{artifact.key}' AND tags.`selftrain.digest` = '{artifact.digest}'"
        found = self.client.search_runs([self.experiment], filters, max_results=1, order_by=["start_time ASC"])
        if not found and self._may_come(artifact, operation):
            raise Later
        told = found and not _half_told(found[0])
        run_id = found[0].info.run_id if told else self._recorded_run(artifact, operation)
        self.client.log_batch(parent, tags=[RunTag(f"selftrain.reused.{operation['name']}", run_id)])
        model = self._model(artifact.digest) if artifact.stage in MODEL_STAGES else None
        if model is not None and model.model_id not in input_models(self.client.get_run(parent)):
            self.client.log_inputs(parent, models=[LoggedModelInput(model.model_id)])
        self._scores(parent, operation["name"], artifact, operation)

    def _may_come(self, artifact: Artifact, operation: Operation) -> bool:
        """Returns whether the process that computed the artifact still has to send its run; a second run must not
        appear."""
        age = time.time() - operation["time"]
        return age < SOON_SECONDS or (age < PATIENCE_SECONDS and self.is_pending(artifact))

    def _recorded_run(self, artifact: Artifact, operation: Operation) -> str:
        """Records a run, from an artifact's manifest, for an artifact that was computed before this server was used."""
        manifest, local = artifact.manifest, f"{artifact.key}-{artifact.digest}"
        times = {"time": manifest["finished"] - manifest["seconds"]}
        tags = {RECORDED: "from the store's manifest"}
        self._run({"run": local, "name": operation["name"], "parent": None, "tags": tags, **times})
        self._describe(self.run_id(local), artifact, operation)
        self._end({"run": local, "ending": "FINISHED", "time": manifest["finished"]})
        return self.run_id(local)

    def _promote(self, operation: Operation) -> None:
        from mlflow.entities import RunTag

        run_id, artifact = self.run_id(operation["run"]), _artifact_of(operation)
        model = self._model(artifact.digest)
        if model is None:
            raise LookupError(f"no logged model has the digest {artifact.digest}")
        promoted, verdict = promote(self.client, model, model.source_run_id or run_id, operation)
        version = version_of(self.client, operation["name"], artifact.digest)
        if version is not None and not version.description:
            describe(self.client, version, model.model_id, artifact, self.client.get_run(run_id).info.run_name)
        if promoted:
            self.champion = verdict
        self.client.log_batch(run_id, tags=[RunTag("selftrain.champion", verdict)])


def _artifact_of(operation: Operation) -> Artifact:
    return Artifact(Path(operation["path"]), operation["manifest"])


def _half_told(run: "MlflowRun") -> bool:
    """Returns whether recording this run was interrupted."""
    return RECORDED in run.data.tags and run.info.status == "RUNNING"


def _milliseconds(operation: Operation) -> int:
    return int(operation["time"] * 1000)
