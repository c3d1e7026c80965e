"""A recipe of eight stages, and what must be the same however it was disturbed."""

import json
import os
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import psutil
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from selftrain.ssl_tasks.settings.recipe import load_recipe
from selftrain.ssl_tasks.store.runs import Run, all_runs
from tests.stack.api import Api, until
from tests.stack.servers import Stack

STAGES = 8
RECIPE = """\
name: tiny
data: {source: {name: digits}, split: {labels_per_class: 4, validation: 60, test: 60}}
teacher:
  model: {name: small_cnn, width: 4}
  train: {steps: 600, batch_size: 20, evaluate_every: 50, ema_decay: 0.9, learning_rate: 0.05}
rounds: 1
round:
  student:
    model: {name: small_cnn, width: 4}
    train: {steps: 30, batch_size: 10, unlabeled_ratio: 2, evaluate_every: 10, ema_decay: 0.9, learning_rate: 0.05}
runtime: {threads: 1, checkpoint_every: 0.3}
"""


@dataclass
class Team:
    """The servers, and a deployment that tests start with workspaces of their own."""

    stack: Stack
    api: Api
    told: list[str]
    deployment: str = ""
    expected: dict[str, str] = field(default_factory=dict)

    def config(self, name: str, **changes: Any) -> dict[str, Any]:
        """The recipe as parameters, with a name and a shared store of its own."""
        path = self.stack.folder / "tiny.yaml"
        path.write_text(RECIPE)
        values = load_recipe(path).config.model_dump(mode="json")
        values["runtime"]["store"] = f"s3://selftrain/{name}"
        return {**values, "name": name, **changes}

    def mlflow(self) -> MlflowClient:
        """A client that is logged in."""
        for name, value in self.stack.worker_environment().items():
            if name.startswith("MLFLOW"):
                os.environ[name] = value
        return MlflowClient(self.stack.url("mlflow"))

    def mlflow_runs(self, started: "Started") -> list[MlflowRun]:
        """All MLflow runs below the pipeline runs of a workspace."""
        client = self.mlflow()
        experiment = client.get_experiment_by_name("selftrain")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], max_results=1000)
        ids = [run.id for run in all_runs(started.workspace)]
        parents = {run.info.run_id for run in found if run.data.tags.get("selftrain.run") in ids}
        return [run for run in found if run.data.tags.get("mlflow.parentRunId") in parents]

    def stored(self, bucket: str, prefix: str = "") -> list[str]:
        """The names of all objects in a bucket."""
        environment = self.stack.worker_environment()
        client = boto3.client(
            "s3",
            endpoint_url=self.stack.url("s3"),
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def deploy(self, *words: str) -> str:
        """Deploys the recipe with our command; returns the deployment's id."""
        done = self.stack.selftrain("deploy", "tiny.yaml", "--json", *words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["id"]

    def start(self, name: str, deployment: str = "", **changes: Any) -> "Started":
        """Starts the recipe in a workspace of its own, where nothing is done yet."""
        workspace = self.stack.folder / "workspaces" / name
        deployment = deployment or self.deployment
        flow_run = self.api.start(deployment, config=self.config(name, **changes), workspace=str(workspace))
        return Started(self, flow_run, workspace)


@dataclass
class Started:
    """A flow run on its way."""

    team: Team
    id: str
    workspace: Path

    @property
    def run(self) -> Run:
        """The newest record: a run that was started again has several."""
        return until(lambda: list(all_runs(self.workspace)))[-1]

    def log(self, stage: str) -> str:
        """Returns the log of a stage's process, over all attempts."""
        paths = [run.path / "logs" / f"{stage}.log" for run in all_runs(self.workspace)]
        return "".join(path.read_text() for path in paths if path.exists())

    def in_training(self) -> psutil.Process:
        """Waits until the teacher has left a checkpoint; returns the flow's process."""
        until(
            lambda: list(self.workspace.glob("store/attempts/train-*/scratch/*")), story=lambda: str(self.api_state())
        )
        return psutil.Process(self.run.info["pid"])

    def api_state(self) -> Any:
        return self.team.api.state(self.id)

    def finish(self) -> dict[str, Any]:
        """Waits for the end, and checks that everything is right, once."""
        state = self.team.api.wait_for(self.id, "COMPLETED", "FAILED", "CANCELLED")
        assert state["type"] == "COMPLETED", state
        assert digests(self.run) == self.team.expected
        assert computed(self.workspace) == STAGES, "each stage once, over all attempts"
        return state


def digests(run: Run) -> dict[str, str]:
    """Returns the digest of each stage's artifact."""
    return {stage.name: stage.digest for stage in run.stages()}


def computed(workspace: Path) -> int:
    """Stages that were computed, over all runs of a workspace."""
    return sum(stage.state == "computed" for run in all_runs(workspace) for stage in run.stages())


def gpu_holder(stack: Stack) -> int | None:
    """The process that has the kernel's lock of the (pretended) GPU 0."""
    inode = (stack.folder / "locks" / "gpu-0.lock").stat().st_ino
    # A line of it: 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return next((int(lock[4]) for lock in locks if lock[1] == "FLOCK" and lock[5].endswith(f":{inode}")), None)


def family(flow: psutil.Process) -> set[int]:
    """A flow's process and all that it runs, one of which has the GPU."""
    return {flow.pid, *(child.pid for child in flow.children(recursive=True))}


def listen(told: list[str]) -> HTTPServer:
    """A webhook on loopback that keeps what it is told."""

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Webhook)
    Thread(target=server.serve_forever, daemon=True).start()
    return server
