"""A Ray cluster of two machines (two nodes on this host): the same bytes as at home, whichever process dies."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest

from selftrain.flows.actions.compare import run_cells
from selftrain.flows.actions.verbs import run
from selftrain.ssl_tasks.errors import ConfigError, Interrupted
from selftrain.ssl_tasks.execution import process
from selftrain.ssl_tasks.execution.stage import Request
from selftrain.ssl_tasks.settings.pseudo_labels import PredictSettings
from selftrain.ssl_tasks.settings.recipe import load_recipe
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.training.launch import free_port
from tests.bodies import isolated
from tests.flows.tiny import write_recipe
from tests.pseudo_labels.teachers import synthetic, teacher
from tests.stack.servers import BINARIES, ROOT

pytest.importorskip("ray", reason="Ray is not installed: pip install 'selftrain[ray]'")
pytestmark = pytest.mark.stack
Inputs = tuple[Artifact, Artifact]
TRIES = 3


class Cluster:
    """A head and another node, of one CPU each."""

    def __init__(self, folder: Path) -> None:
        self.address, self.folder = f"127.0.0.1:{free_port()}", folder
        self.nodes: list[subprocess.Popen[bytes]] = []

    def start_both(self) -> None:
        port = self.address.rpartition(":")[2]
        self.head = self.start("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder}")
        self.other = self.join()

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        """A node, once it is up. Ray itself gives up after 30 seconds, which a busy machine may need."""
        for _ in range(TRIES):
            node, told = self.attempt(*words)
            if node.poll() is None:
                return node
        raise AssertionError(told)

    def attempt(self, *words: str) -> tuple["subprocess.Popen[bytes]", str]:
        """A node that is up or has given up, and what it said."""
        common = ("--num-cpus=1", "--node-ip-address=127.0.0.1", "--disable-usage-stats", "--block")
        log = self.folder / f"{len(list(self.folder.glob('*.txt')))}.txt"
        with log.open("wb") as output:
            node = subprocess.Popen(
                [str(BINARIES / "ray"), "start", *words, *common],
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.nodes.append(node)
        wait_for(lambda: "will now block" in log.read_text() or node.poll() is not None)
        return node, log.read_text()

    def join(self) -> "subprocess.Popen[bytes]":
        return self.start(f"--address={self.address}")

    def workers(self, node: "subprocess.Popen[bytes]") -> list[psutil.Process]:
        """The processes of a node that label shards right now."""
        below = psutil.Process(node.pid).children(recursive=True)
        return [one for one in below if "label_shard" in " ".join(one.cmdline())]

    def kill(self, node: "subprocess.Popen[bytes]") -> None:
        """As a power cut would: the node and all that it runs."""
        if node.poll() is None:
            for one in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
                one.kill()
            node.wait()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as place:  # a socket's path must be short
        started = Cluster(Path(place))
        try:
            started.start_both()
            yield started
        finally:
            for node in reversed(started.nodes):
                started.kill(node)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    workspace = tmp_path_factory.mktemp("inputs")
    return synthetic(workspace, size=4000), teacher(workspace / "teacher")


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory, inputs: Inputs) -> Artifact:
    """Returns the result of one process for the same stage."""
    return predict(tmp_path_factory.mktemp("home"), inputs)


def wait_for(what: Callable[[], Any], seconds: float = 600) -> Any:
    """Until `what` is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def predict(workspace: Path, inputs: Inputs, **runtime: Any) -> Artifact:
    settings = PredictSettings(shard_size=50, batch_size=32, views=8)
    roles = dict(zip(("dataset", "model"), inputs, strict=True))
    request = Request("predict", "predict", 1, "selftrain.ssl_tasks.pseudo_labels.predict:predict", settings, roles)
    chosen = RuntimeSettings.model_validate({"threads": 1, "device": "cpu", **runtime})
    return isolated(request, workspace, chosen)


def begin(workspace: Path, inputs: Inputs, cluster: Cluster) -> "Future[Artifact]":
    """Predicting by Ray, with some shards done and most still to do."""
    by_ray = {"task_runner": "ray", "ray_address": cluster.address}
    future = ThreadPoolExecutor(1).submit(predict, workspace, inputs, **by_ray)
    wait_for(lambda: finished_shards(workspace) > 2 or future.done())
    assert not future.done()
    return future


def finished_shards(workspace: Path) -> int:
    return len(list((workspace / "cache" / "shards").rglob("*.parquet")))


def test_shards_from_two_machines_are_byte_for_byte_those_of_one(
    tmp_path: Path, inputs: Inputs, at_home: Artifact, cluster: Cluster
) -> None:
    future = begin(tmp_path, inputs, cluster)
    assert wait_for(lambda: cluster.workers(cluster.head))
    assert wait_for(lambda: cluster.workers(cluster.other))
    assert finished_shards(tmp_path) < at_home.summary["shards"]
    found = future.result()
    assert found.digest == at_home.digest
    assert found.summary["shards_reused"] == 0
    assert [path.read_bytes() for path in shards(found)] == [path.read_bytes() for path in shards(at_home)]


def shards(artifact: Artifact) -> list[Path]:
    return sorted((artifact.path / "shards").iterdir())


def test_a_worker_and_then_a_whole_machine_may_die_under_it(
    tmp_path: Path, inputs: Inputs, at_home: Artifact, cluster: Cluster
) -> None:
    future = begin(tmp_path, inputs, cluster)
    wait_for(lambda: cluster.workers(cluster.head))[0].kill()
    since = finished_shards(tmp_path)
    wait_for(lambda: finished_shards(tmp_path) > since)
    wait_for(lambda: cluster.workers(cluster.other))
    cluster.kill(cluster.other)  # while it labels
    assert finished_shards(tmp_path) < at_home.summary["shards"]
    assert future.result().digest == at_home.digest
    cluster.other = cluster.join()


def test_a_stopped_run_keeps_its_shards_and_resumes(
    tmp_path: Path, inputs: Inputs, at_home: Artifact, cluster: Cluster
) -> None:
    future = begin(tmp_path, inputs, cluster)
    (stage,) = process._live
    os.kill(stage.pid or 0, signal.SIGTERM)
    with pytest.raises(Interrupted, match="asked to stop"):
        future.result()
    kept = finished_shards(tmp_path)
    assert 0 < kept < at_home.summary["shards"]
    found = predict(tmp_path, inputs, task_runner="ray", ray_address=cluster.address)
    assert found.summary["shards_reused"] == kept
    assert found.digest == at_home.digest


def test_a_task_that_no_machine_has_room_for_is_refused(tmp_path: Path, inputs: Inputs, cluster: Cluster) -> None:
    sentence = r"no machine .* has room for a task of 64 CPUs .* found 1 CPUs, 0 GPUs; 1 CPUs, 0 GPUs"
    with pytest.raises(ConfigError, match=sentence):
        predict(tmp_path, inputs, task_runner="ray", ray_address=cluster.address, threads=64)


def test_the_cells_of_a_comparison_run_on_the_machines_of_the_cluster(tmp_path: Path, cluster: Cluster) -> None:
    recipe = write_recipe(tmp_path)
    few = ["rounds=[]", "teacher.train.steps=4", "teacher.train.evaluate_every=2"]
    by_ray = ["runtime.task_runner=ray", f"runtime.ray_address={cluster.address}"]
    grid = [[f"seed={seed}", f"name=cell-{seed}"] for seed in range(3)]
    cells = [load_recipe(recipe, [*few, *by_ray, *cell]) for cell in grid]
    found = run_cells(cells, tmp_path / "workspace", prefect=True)
    assert [one.info["name"] for one in found] == ["cell-0", "cell-1", "cell-2"]
    assert all(one.info["prefect_flow_run"] for one in found)
    at_home = run(recipe, [*few, *grid[2]], workspace=tmp_path / "home", prefect=False)
    assert [stage.digest for stage in found[2].stages()] == [stage.digest for stage in at_home.stages()]
