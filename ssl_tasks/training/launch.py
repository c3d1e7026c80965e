"""Training in several processes on this host: torch's elastic launcher as a child, one worker a rank."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_tasks import errors
from ssl_tasks.artifacts import Artifact, file_lock, write_atomically
from ssl_tasks.config import LearnerSettings
from ssl_tasks.stage import StageContext, StageResult
from ssl_tasks.training.interruption import StopRequest, stop_requests
from ssl_tasks.training.settings import RuntimeSettings

ALIVE = "alive.lock"


def train_in_processes(context: StageContext) -> StageResult:
    """Runs the workers and waits. Raises the error of the rank that failed; what was trained can be resumed."""
    folder, processes = context.scratch / "processes", context.runtime.processes
    refuse_unequal_slices(context)
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.json"):
        stale.unlink()
    asked = folder / "context.json"
    write_atomically(asked, json.dumps(to_json(context)))
    threads = max(1, (context.runtime.threads or os.cpu_count() or 1) // processes)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    # The workers wait for this lock and leave when they get it: it is free when we are gone, however we went.
    with file_lock(folder / ALIVE), stop_requests() as request:
        group = subprocess.Popen(
            [*launcher, "-m", "ssl_tasks.training.worker", str(asked)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        try:
            wait(group, request)
        finally:
            group.kill()
    return read_answers(folder, processes)


def refuse_unequal_slices(context: StageContext) -> None:
    """The mean of the ranks' gradients is the batch's only where every rank has as many images."""
    assert isinstance(context.section, LearnerSettings)
    train, processes = context.section.train, context.runtime.processes
    if train.batch_size % (processes * train.accumulate):
        raise errors.ConfigError(
            f"train.batch_size {train.batch_size} cannot be shared by runtime.processes = {processes} with "
            f"train.accumulate = {train.accumulate}; expected a multiple of {processes * train.accumulate}"
        )


def wait(group: subprocess.Popen[bytes], request: StopRequest) -> None:
    """Until the group has ended; passes on a request to stop, so that the ranks write their checkpoint."""
    told = False
    while group.poll() is None:
        if request.received is not None and not told:
            group.send_signal(request.received)
            told = True
        try:
            group.wait(0.2)
        except subprocess.TimeoutExpired:
            continue


def read_answers(folder: Path, processes: int) -> StageResult:
    """The result of rank 0; else the error that says most: one of ours, then a death, then what these led to."""
    answers = {
        number: json.loads(path.read_text())
        for number in range(processes)
        if (path := answer_path(folder, number)).exists()
    }
    failed = [answer for answer in answers.values() if "error" in answer]
    known = [answer for answer in failed if answer["error"] != "SelftrainError"]
    if known:
        raise getattr(errors, known[0]["error"])(known[0]["message"])
    if dead := sorted(set(range(processes)) - set(answers)):
        raise errors.SelftrainError(
            f"training process {dead[0]} of {processes} (counted from 0) was killed or could not start, and the others "
            "were stopped. Run again: training goes on at the last checkpoint. If it dies again, it may lack memory: "
            "lower train.batch_size or runtime.processes."
        )
    if failed:
        raise errors.SelftrainError(failed[0]["message"])
    return StageResult(summary=answers[0]["summary"], parts=answers[0]["parts"])


def answer_path(folder: Path, number: int) -> Path:
    """Where a rank leaves its result or its error."""
    return folder / f"rank-{number}.json"


def to_json(context: StageContext) -> dict[str, Any]:
    """The context as plain JSON values: nothing is pickled."""
    section = type(context.section)
    return {
        "section": {
            "class": f"{section.__module__}:{section.__qualname__}",
            "values": context.section.model_dump(mode="json"),
        },
        "inputs": {
            role: {"path": str(one.path), "manifest": dict(one.manifest)} for role, one in context.inputs.items()
        },
        "runtime": context.runtime.model_dump(mode="json"),
        **{name: str(getattr(context, name)) for name in ("output", "scratch", "cache")},
        "events": None if context.events is None else str(context.events),
        "seed": context.seed,
    }


def from_json(values: Mapping[str, Any]) -> StageContext:
    """What `to_json` was given."""
    module, _, name = values["section"]["class"].partition(":")
    return StageContext(
        section=getattr(importlib.import_module(module), name).model_validate(values["section"]["values"]),
        inputs={role: Artifact(Path(one["path"]), one["manifest"]) for role, one in values["inputs"].items()},
        output=Path(values["output"]),
        scratch=Path(values["scratch"]),
        cache=Path(values["cache"]),
        runtime=RuntimeSettings.model_validate(values["runtime"]),
        events=None if values["events"] is None else Path(values["events"]),
        seed=values["seed"],
    )
