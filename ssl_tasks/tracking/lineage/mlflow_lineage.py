"""The same lineage by MLflow's API alone: model → its run → data sets and models that it read → their runs → …"""

import json
from typing import TYPE_CHECKING

from selftrain.ssl_tasks.tracking.entities import input_datasets, input_models
from selftrain.ssl_tasks.tracking.lineage.graph import Graph, Node
from selftrain.ssl_tasks.tracking.lineage.trace import kind_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, Run


def mlflow_lineage(client: "MlflowClient", model_id: str) -> Graph:
    """What a logged model rests on."""
    graph = Graph(model_id)
    _add_model(client, graph, model_id)
    return graph


def _add_model(client: "MlflowClient", graph: Graph, model_id: str) -> None:
    model = client.get_logged_model(model_id)
    details = {"run": model.source_run_id, "experiment": model.experiment_id, **model.tags}
    if graph.add(Node(model_id, "model", model.name, model.tags.get("selftrain.digest", ""), details)):
        _add_inputs(client, graph, client.get_run(str(model.source_run_id)), model_id)


def _add_inputs(client: "MlflowClient", graph: Graph, run: "Run", target: str) -> None:
    for dataset in input_datasets(run):
        _add_dataset(client, graph, dataset, run.info.experiment_id, target)
    for model_id in input_models(run):
        graph.connect(model_id, target, "model")
        _add_model(client, graph, model_id)


def _add_dataset(client: "MlflowClient", graph: Graph, dataset: "Dataset", experiment: str, target: str) -> None:
    """A data set, and, where it is an artifact of ours, what the run that made it has read."""
    source = json.loads(dataset.source)
    part = source.get("part")
    node_id = f"{dataset.name}:{dataset.digest}" if part else source.get("key", dataset.digest)
    kind = "labels" if part else kind_of(source.get("stage", ""))
    graph.connect(node_id, target, part or dataset.name)
    if not graph.add(Node(node_id, kind, part or dataset.name, dataset.digest, source)) or part:
        return
    # The digest too: an attempt that failed has the same key.
    filters = f"tags.`selftrain.key` = '{source.get('key')}' AND tags.`selftrain.digest` LIKE '{dataset.digest}%'"
    made_by = client.search_runs([experiment], filters, max_results=1)
    if made_by:  # a search leaves model inputs out
        _add_inputs(client, graph, client.get_run(made_by[0].info.run_id), node_id)
