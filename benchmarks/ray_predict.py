"""Predicting by Ray: images a second on one node and on two, and beside the stage without Ray.

python benchmarks/ray_predict.py [--quick] [--model wrn-28-2] [--images 8000]

Every side labels the same shards on one thread a task. The nodes are processes of this host with one CPU each, so that
two of them can be at best twice as fast where the host has two cores for them, and nothing else runs. Every turn starts
Ray's workers again, which import torch and read the model: that is part of the figure, as it is of every stage.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.predict import CLASSES, build, pictures, untrained
from benchmarks.report import publish
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.settings.pseudo_labels import PredictSettings
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact

RATIO = 1.6  # of two nodes to one
RAY = Path(sys.executable).parent / "ray"


@contextlib.contextmanager
def node(folder: Path, *words: str) -> Iterator[None]:
    """A Ray node of one CPU on this host."""
    log = folder / f"node-{len(words)}.txt"
    command = [str(RAY), "start", *words, "--num-cpus=1", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        started = subprocess.Popen(
            [*command, "--block"], stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        while "will now block" not in log.read_text():
            if started.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        yield
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(60)


def images_per_second(inputs: dict[str, Artifact], workspace: Path, shard_size: int, **runtime: Any) -> float:
    """The whole stage, without shards that were there before."""
    shutil.rmtree(workspace / "cache" / "shards", ignore_errors=True)
    section = PredictSettings(shard_size=shard_size, batch_size=250)
    request = Request("predict", "predict", 1, "selftrain.ssl_tasks.pseudo_labels.predict:predict", section, inputs)
    settings = RuntimeSettings.model_validate({"threads": 1, **runtime})
    summary = execute(request, workspace, settings, force=True).artifact.summary
    return summary["images"] / sum(summary["seconds"].values())


def measure(images: int, model: str, repeats: int) -> list[dict[str, Any]]:
    """All sides, one after the other: a second node cannot leave and come back between turns without a pause."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as place:  # a socket's path must be short
        folder = Path(place)
        workspace = folder / "workspace"
        workspace.mkdir()
        dataset = build(pictures(workspace, images), workspace)
        teacher = untrained(workspace / "model", model, [str(number) for number in range(CLASSES)])
        inputs, shard_size = {"dataset": dataset, "model": teacher}, max(250, images // 32)

        def side(name: str, **runtime: Any) -> dict[str, Any]:
            speeds = [images_per_second(inputs, workspace, shard_size, **runtime) for _ in range(repeats)]
            return {"side": name, "images_per_second": statistics.median(speeds), "slowest": min(speeds)}

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        by_ray = {"task_runner": "ray", "ray_address": address}
        head = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
        rows = [side("without Ray, one thread")]
        with node(folder, *head, f"--temp-dir={folder}/r"):
            rows.append(side("Ray, one node", **by_ray))
            with node(folder, f"--address={address}"):
                rows.append(side("Ray, two nodes", **by_ray))
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 images, one turn")
    parser.add_argument("--model", default="wrn-28-2")
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--repeats", type=int, default=3)
    wanted = parser.parse_args()
    images, repeats = (2_000, 1) if wanted.quick else (wanted.images, wanted.repeats)
    rows = measure(images, wanted.model, repeats)
    alone, one, two = (row["images_per_second"] for row in rows)
    ratio = two / one
    about = {"model": wanted.model, "images": images, "two_nodes_to_one": ratio, "one_node_to_no_ray": one / alone}
    publish("ray_predict", rows, {**about, "target": RATIO, "meets": ratio >= RATIO}, wanted.quick)


if __name__ == "__main__":
    main()
