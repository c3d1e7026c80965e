"""Trains in several processes, on one host or several, with torch's elastic launcher; one worker per rank.

A host that runs `selftrain assist` joins every training of a shared workspace that asks for more hosts.
"""

import importlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from selftrain.ssl_tasks import errors
from selftrain.ssl_tasks.execution.devices import lease
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult
from selftrain.ssl_tasks.execution.startup import safe_path
from selftrain.ssl_tasks.settings.run_config import LearnerSettings, RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact, write_atomically
from selftrain.ssl_tasks.store.locks import file_lock
from selftrain.ssl_tasks.training.checkpoints import StopRequest, stop_requests

ALIVE, INVITATION = "alive.lock", "invitation.json"
WORKER = "selftrain.ssl_tasks.training.worker"
MEETING = "SELFTRAIN_MEETING"  # where the workers of a single host meet
JOIN_SECONDS = 600  # seconds that the first host waits for the others
log = logging.getLogger("selftrain")


@dataclass(frozen=True)
class Group:
    """The processes that train together, and where their hosts meet."""

    context: str  # the file that every worker reads
    processes: int  # on each host
    nodes: int
    endpoint: str
    id: str
    threads: int | None

    @property
    def size(self) -> int:
        return self.nodes * self.processes

    def start(self, host: bool) -> subprocess.Popen[bytes]:
        """Starts this machine's processes of the group; `host` is set on the machine where the hosts meet.

        On a single host, the processes meet in files and communicate over loopback, so no other user can reach them.
        (torch's `--standalone` listens on all addresses.)
        """
        threads = max(1, (self.threads or os.cpu_count() or 1) // self.processes)
        variables = {**os.environ, **safe_path(), "OMP_NUM_THREADS": str(threads)}
        endpoint, how = self.endpoint, f"is_host={int(host)},join_timeout={JOIN_SECONDS}"
        if self.nodes == 1:
            meeting = Path(self.context).with_name(f"meeting-{self.id}")
            endpoint, how = str(meeting), "store_type=file"
            loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
            variables |= {
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
                "GLOO_SOCKET_IFNAME": loopback,
                "NCCL_SOCKET_IFNAME": loopback,
                MEETING: f"file://{meeting}-of-workers",
            }
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={self.processes}"]
        launcher += [f"--nnodes={self.nodes}", "--rdzv-backend=c10d", f"--rdzv-id={self.id}"]
        launcher += [f"--rdzv-endpoint={endpoint}", f"--rdzv-conf={how}"]
        return subprocess.Popen([*launcher, "-m", WORKER, self.context], env=variables)


def train_in_processes(context: StageContext) -> StageResult:
    """Runs the workers, waits, and returns their result or raises the error of the rank that failed."""
    folder, runtime = context.scratch / "processes", context.runtime
    refuse_unequal_slices(context)
    folder.mkdir(exist_ok=True)
    for stale in (*folder.glob("*.json"), *folder.glob("meeting-*")):
        stale.unlink()
    asked = folder / "context.json"
    write_atomically(asked, json.dumps(to_json(context)))
    endpoint = runtime.rendezvous or (f"{socket.gethostname()}:{free_port()}" if runtime.nodes > 1 else "")
    group = Group(str(asked), runtime.processes, runtime.nodes, endpoint, uuid4().hex, runtime.threads)
    # The workers wait for this lock and exit when they get it: it is free once this process has ended in any way.
    with file_lock(folder / ALIVE), stop_requests() as request:
        if group.nodes > 1:
            write_atomically(folder / INVITATION, json.dumps(asdict(group)))
            log.info("waiting for %d more hosts: `selftrain assist` on each, in this workspace", group.nodes - 1)
        launched = group.start(host=True)
        try:
            wait(launched, request)
        finally:
            launched.kill()
    return read_answers(folder, group.size, group.nodes)


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def refuse_unequal_slices(context: StageContext) -> None:
    """Raises ConfigError unless every rank gets equally many images.

    Only then is the mean of the ranks' gradients the gradient of the batch."""
    assert isinstance(context.section, LearnerSettings)
    train, runtime = context.section.train, context.runtime
    processes = runtime.processes * runtime.nodes
    if train.batch_size % (processes * train.accumulate):
        hosts = f" × runtime.nodes = {runtime.nodes}" if runtime.nodes > 1 else ""
        raise errors.ConfigError(
            f"train.batch_size {train.batch_size} cannot be shared by runtime.processes = {runtime.processes}{hosts} "
            f"with train.accumulate = {train.accumulate}; expected a multiple of {processes * train.accumulate}"
        )


def wait(group: subprocess.Popen[bytes], request: StopRequest) -> None:
    """Waits until the group has ended; passes on a request to stop, so that the ranks write a checkpoint."""
    told = False
    while group.poll() is None:
        if request.received is not None and not told:
            group.send_signal(request.received)
            told = True
        try:
            group.wait(0.2)
        except subprocess.TimeoutExpired:
            continue


def read_answers(folder: Path, processes: int, nodes: int = 1) -> StageResult:
    """Returns rank 0's result, or raises the most informative error: one of ours, then a death, then a consequence."""
    answers = {
        number: json.loads(path.read_text())
        for number in range(processes)
        if (path := answer_path(folder, number)).exists()
    }
    failed = [answer for answer in answers.values() if "error" in answer]
    known = [answer for answer in failed if answer["error"] != "SelftrainError"]
    if known:
        raise errors.described(known[0])
    if nodes > 1 and not answers:
        raise errors.SelftrainError(
            f"the {nodes} hosts of runtime.nodes did not meet, or the network between them broke. Each of the others "
            "needs `selftrain assist`, this workspace under the same path, and a way to runtime.rendezvous. Run again: "
            "training resumes at the last checkpoint, if there is one"
        )
    if dead := sorted(set(range(processes)) - set(answers)):
        raise errors.SelftrainError(
            f"training process {dead[0]} of {processes} (counted from 0) was killed or could not start, and the others "
            "were stopped. Run again: training resumes at the last checkpoint. If it dies again, it may lack memory: "
            "lower train.batch_size or runtime.processes."
        )
    if failed:
        raise errors.SelftrainError(failed[0]["message"])
    return StageResult(summary=answers[0]["summary"], parts=answers[0]["parts"])


def answer_path(folder: Path, number: int) -> Path:
    """Returns the file for the result or the error of a rank."""
    return folder / f"rank-{number}.json"


def to_json(context: StageContext) -> dict[str, Any]:
    """Returns the context as plain JSON values, so that nothing is pickled."""
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
    """Restores the context from the result of `to_json`."""
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


def assist(workspace: Path, device: str = "auto", pause: float = 1.0) -> None:
    """Joins trainings until it is interrupted; ranks here end if the training's own process has ended."""
    joined: set[str] = set()
    while True:
        for path in workspace.glob(f"store/attempts/*/scratch/processes/{INVITATION}"):
            group = invitation(path)
            if group is not None and group.id not in joined and is_alive(path.parent):
                joined.add(group.id)
                log.info("joining %s", path.parents[2].name)
                code = join(group, device)
                log.info("%s: %s", path.parents[2].name, "done" if code == 0 else f"ended with code {code}")
        time.sleep(pause)


def invitation(path: Path) -> Group | None:
    """Reads the invitation of a training; None if it has just ended."""
    try:
        return Group(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def is_alive(folder: Path) -> bool:
    """Returns whether the training's own process holds its lock."""
    try:
        with file_lock(folder / ALIVE, blocking=False):
            return False
    except BlockingIOError:
        return True


def join(group: Group, device: str) -> int:
    """Runs this host's processes of the group to their end, on GPUs that no other stage of this host holds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    with lease(device, group.processes):
        launched = group.start(host=False)
        try:
            return launched.wait()
        finally:
            launched.kill()
            if visible is None:
                os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = visible
