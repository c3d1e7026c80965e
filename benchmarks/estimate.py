"""Compares `selftrain plan --estimate` with what then happens, for three recipes.

    python benchmarks/estimate.py [--quick]

Each recipe takes one to four minutes. It is estimated and then run in a new workspace. Time: of all stages, as the
run's record has it. Memory: the most resident memory of a process that computes a stage, looked at every 20 ms. Disk:
the files of the store and of the cache afterwards.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import publish
from selftrain.flows.rounds.estimate import disk_usage

LINEAR = """\
# A linear teacher on stored features of a network, which labels the images for one student.
name: linear
data:
  source: {name: synthetic, size: 6000, test_size: 1500, image_size: 32}
  split: {labels_per_class: 20, validation: 500}
teacher:
  model: {name: wrn-28-2}
  method: {name: linear}
rounds: 1
round:
  student:
    model: {name: small_cnn, width: 16}
    train: {steps: 300, batch_size: 32, unlabeled_ratio: 4, evaluate_every: 100}
"""
FACTOR = 1.5
FULL = {"digits/fixmatch": ["teacher.train.steps=2000"]}  # with 400, the start of a run is half of its time
QUICK = {
    "quickstart": ["rounds=1", "teacher.train.steps=100", "rounds.1.student.train.steps=100"],
    "digits/fixmatch": ["teacher.train.steps=100"],
    "linear": ["data.source.size=1000", "data.source.test_size=100", "rounds.1.student.train.steps=60"],
}


def selftrain(workspace: Path, *words: str) -> "subprocess.Popen[str]":
    """Starts the command with one thread of torch, so that other work on the machine disturbs less."""
    line = [sys.executable, "-m", "selftrain", "--workspace", str(workspace), *words, "--set", "runtime.threads=1"]
    given = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, env=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def answer(started: "subprocess.Popen[str]") -> dict[str, Any]:
    """The JSON that a command prints."""
    output, _ = started.communicate()
    assert started.returncode == 0, f"{started.args} ended with {started.returncode}"
    found: dict[str, Any] = json.loads(output)
    return found


def watched(running: "subprocess.Popen[str]") -> int:
    """The most resident memory of a stage's process, in bytes, until the command ends."""
    whole, most = psutil.Process(running.pid), 0
    while running.poll() is None:
        try:
            servers = [one for one in whole.children() if "forkserver" in " ".join(one.cmdline())]
            stages = [one for server in servers for one in server.children()]
            most = max([most, *(one.memory_info().rss for one in stages)])
        except psutil.Error:
            continue
        time.sleep(0.02)
    return most


def compared(recipe: str, name: str, overrides: list[str]) -> dict[str, Any]:
    """One recipe: its estimate, and what then happened."""
    words = [recipe, *(word for one in overrides for word in ("--set", one)), "--json"]
    with tempfile.TemporaryDirectory(prefix="selftrain-estimate-") as folder:
        workspace = Path(folder)
        started = time.monotonic()
        estimate = answer(selftrain(workspace, "plan", "--estimate", *words))["total"]
        measuring = time.monotonic() - started
        running = selftrain(workspace, "run", "--no-prefect", *words)
        memory = watched(running)
        answer(running)
        looked = [sys.executable, "-m", "selftrain", "--workspace", folder, "status", "--json"]
        stages = json.loads(subprocess.run(looked, capture_output=True, text=True, check=True).stdout)["stages"]
        disk = disk_usage(workspace / "store") + disk_usage(workspace / "cache")
    seconds = sum(one["seconds"] for one in stages)
    return {
        "recipe": name,
        "estimated s": estimate["seconds"],
        "run s": round(seconds, 1),
        "time": estimate["seconds"] / seconds,
        "estimated MB": estimate["memory_bytes"] / 1e6,
        "run MB": memory / 1e6,
        "memory": estimate["memory_bytes"] / memory,
        "estimated disk MB": estimate["disk_bytes"] / 1e6,
        "run disk MB": disk / 1e6,
        "disk": estimate["disk_bytes"] / disk,
        "measuring s": round(measuring, 1),
    }


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps and images: no figures")
    quick = parser.parse_args().quick
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        linear = Path(folder) / "linear.yaml"
        linear.write_text(LINEAR)
        for recipe, name in (("quickstart", "quickstart"), ("digits/fixmatch",) * 2, (str(linear), "linear")):
            rows.append(compared(recipe, name, (QUICK if quick else FULL).get(name, [])))
    worst = {what: max(max(row[what], 1 / row[what]) for row in rows) for what in ("time", "memory", "disk")}
    summary = {"worst_time": worst["time"], "worst_memory": worst["memory"], "worst_disk": worst["disk"]}
    publish("estimate", rows, {**summary, "target": FACTOR, "meets": max(worst.values()) <= FACTOR}, quick)


if __name__ == "__main__":
    main()
