"""A million samples: built in seconds, opened with nothing of their number but the columns that are needed."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.settings.data import DataSettings
from selftrain.ssl_tasks.execution.stage import Request, execute
import selftrain.ssl_tasks.data.dataset, sklearn  # what any data set costs

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

workspace, size = Path(sys.argv[1]), int(sys.argv[2])
start, before = time.monotonic(), peak()
source = {"name": "synthetic", "size": size, "image_size": 32}
settings = DataSettings.model_validate({"source": source, "split": {"labels_per_class": 25}})
request = Request("dataset", "dataset", 1, "selftrain.ssl_tasks.data.dataset:build_dataset", settings)
artifact = execute(request, workspace).artifact
if sys.argv[3] == "build":
    print(json.dumps({"seconds": time.monotonic() - start, "grown_mb": peak() - before}))
    sys.exit()
start, before = time.monotonic(), peak()
pool = Dataset.open(artifact, workspace / "cache").pool("unlabeled")
pool.images(np.array([0, len(pool) - 1]))
held = sum(value.nbytes for value in vars(pool).values() if hasattr(value, "nbytes"))
print(json.dumps({"seconds": time.monotonic() - start, "grown_mb": peak() - before, "held": held / len(pool)}))
"""


def measure(workspace: Path, size: int, what: str) -> dict[str, float]:
    command = [sys.executable, "-c", SCRIPT, str(workspace), str(size), what]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_a_million_samples_are_built_and_opened_within_bounds(tmp_path: Path) -> None:
    built = measure(tmp_path, 1_000_000, "build")
    assert built["seconds"] < 60
    assert built["grown_mb"] < 800
    opened = measure(tmp_path, 1_000_000, "open")
    assert opened["seconds"] < 10
    assert opened["grown_mb"] < 250
    assert opened["held"] < 64  # bytes a sample: its label, its position and its name in the source
    assert not list((tmp_path / "cache").rglob("pixels-*.u8"))
