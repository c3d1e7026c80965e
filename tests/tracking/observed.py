"""Everything that a server knows of us, in values that can be compared."""

from typing import Any

from mlflow import MlflowClient


def runs_by_name(client: MlflowClient) -> dict[str, list[Any]]:
    """MLflow's runs, one by one: a search leaves their model inputs out."""
    found: dict[str, list[Any]] = {}
    for run in client.search_runs([one.experiment_id for one in client.search_experiments()]):
        found.setdefault(run.info.run_name, []).append(client.get_run(run.info.run_id))
    return found


def everything(client: MlflowClient) -> dict[str, Any]:
    """Runs, metric histories, inputs, models, files and versions, without the ids that the server chose."""
    experiments = [one.experiment_id for one in client.search_experiments()]
    models = {one.model_id: one for one in client.search_logged_models(experiments)}
    return {
        "runs": sorted(
            (describe_run(client, one, models) for all in runs_by_name(client).values() for one in all), key=str
        ),
        "models": sorted(
            (one.name, str(one.status), sorted(file.path for file in client.list_logged_model_artifacts(one.model_id)))
            for one in models.values()
        ),
        "versions": sorted((one.name, one.version, sorted(one.tags)) for one in client.search_model_versions()),
    }


def describe_run(client: MlflowClient, run: Any, models: dict[str, Any]) -> dict[str, Any]:
    """One run."""
    run_id = run.info.run_id
    histories = {key: client.get_metric_history(run_id, key) for key in run.data.metrics}
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "ended": run.info.end_time,
        "params": run.data.params,
        "tags": sorted(key for key in run.data.tags),
        "metrics": {key: [(one.step, one.timestamp, one.value) for one in rows] for key, rows in histories.items()},
        "datasets": sorted((one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs),
        "read": sorted(models[one.model_id].name for one in run.inputs.model_inputs),
        "made": sorted(models[one.model_id].name for one in run.outputs.model_outputs),
        "files": sorted(one.path for one in client.list_artifacts(run_id)),
    }
