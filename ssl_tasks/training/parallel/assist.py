"""A host that helps others to train: it joins every training of a shared workspace that asks for more hosts."""

import json
import logging
import os
import time
from pathlib import Path

from selftrain.ssl_tasks.execution.devices import lease
from selftrain.ssl_tasks.store.locks import file_lock
from selftrain.ssl_tasks.training.parallel.launch import ALIVE, INVITATION, Group

log = logging.getLogger("selftrain")


def assist(workspace: Path, device: str = "auto", pause: float = 1.0) -> None:
    """Until it is interrupted. A training whose own process is gone takes its ranks here with it."""
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
    """What a training asks for; None where it has just ended."""
    try:
        return Group(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def is_alive(folder: Path) -> bool:
    """Whether the training's own process holds its lock."""
    try:
        with file_lock(folder / ALIVE, blocking=False):
            return False
    except BlockingIOError:
        return True


def join(group: Group, device: str) -> int:
    """Runs our share of the group to its end, on GPUs that no other stage of this host holds."""
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
