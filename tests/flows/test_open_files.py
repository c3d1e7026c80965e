"""Artifacts of a finished run, read by the tools that our users know, without our package."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import duckdb
import pandas as pd
from safetensors.numpy import load_file

from tests.flows.tiny import selftrain


def test_pandas_duckdb_and_safetensors_read_a_run(finished: Path) -> None:
    record = json.loads(next(finished.glob("runs/*/stages/select-1.json")).read_text())
    selection = finished / record["artifact"] / "selection.parquet"
    frame = pd.read_parquet(selection)
    assert {"sample_id", "label", "confidence", "rank_in_class", "copies", "source", "probs"} <= set(frame.columns)
    counted = duckdb.sql(f"select count(*), sum(copies) from '{selection}'").fetchall()[0]
    assert counted == (len(frame), frame["copies"].sum())
    model = json.loads(next(finished.glob("runs/*/stages/student-1.json")).read_text())
    weights = load_file(finished / model["artifact"] / "model.safetensors")
    assert sum(array.size for array in weights.values()) > 100
    history = pd.read_parquet(finished / model["artifact"] / "history.parquet")
    assert history["step"].is_monotonic_increasing


def test_mlflow_tells_which_teacher_and_which_labels_made_the_champion(finished: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished / 'mlflow.db'}")
    version = client.get_model_version_by_alias("tiny", "champion")
    model = client.get_logged_model(version.source.rsplit("/", 1)[-1])
    run = client.get_run(model.source_run_id)
    assert run.info.status == "FINISHED"
    inputs = [one.dataset.name for one in run.inputs.dataset_inputs]
    assert inputs, "the champion's run names its data"
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.params["teacher.model.name"] == "small_cnn"


def test_no_finished_run_is_shown_as_running_in_mlflow(finished: Path) -> None:
    with closing(sqlite3.connect(finished / "mlflow.db")) as database, database:
        states = {row[0] for row in database.execute("select status from runs")}
    assert states == {"FINISHED"}


def test_summary_json_is_stable(finished: Path) -> None:
    done = selftrain(finished, "status", "--json")
    answer = json.loads(done.stdout)
    assert set(answer) == {"run", "state", "stopped", "stages"}
    assert {"name", "key", "state", "seconds", "reason", "log"} <= set(answer["stages"][0])
