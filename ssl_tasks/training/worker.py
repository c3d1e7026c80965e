"""Runs one rank of data-parallel training: `python -m selftrain.ssl_tasks.training.worker CONTEXT`.

torch's launcher starts it.
"""

import os

from selftrain.ssl_tasks.execution.startup import die_with

if __name__ == "__main__":
    die_with(os.getppid())  # before torch's import; if the parent has already died, the lock below is free

import json
import logging
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from selftrain.ssl_tasks.errors import describe
from selftrain.ssl_tasks.execution.devices import resolve_device
from selftrain.ssl_tasks.store.artifacts import write_atomically
from selftrain.ssl_tasks.store.locks import file_lock
from selftrain.ssl_tasks.training.launch import ALIVE, MEETING, answer_path, from_json
from selftrain.ssl_tasks.training.stage import train_here


def main(path: Path) -> int:
    """Trains as the rank that the environment names, and writes a result or an error beside the context."""
    folder = path.parent
    threading.Thread(target=leave_with_the_stage, args=(folder / ALIVE,), daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    context = from_json(json.loads(path.read_text()))
    context = replace(context, runtime=context.runtime.model_copy(update={"threads": torch.get_num_threads()}))
    device = resolve_device(context.runtime.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=os.environ.get(MEETING, "env://"),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    try:
        result = train_here(context, device)
        answer: dict[str, Any] = {"summary": dict(result.summary), "parts": dict(result.parts)}
        dist.barrier()  # no process exits while another still communicates
        dist.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - the stage must be told of any error
        traceback.print_exc()
        answer = describe(error)
    write_atomically(answer_path(folder, int(os.environ["RANK"])), json.dumps(answer, default=str))
    sys.stderr.flush()
    if "error" in answer:
        os._exit(1)  # other ranks would wait for us if our connections stayed open
    return 0


def leave_with_the_stage(lock: Path) -> None:
    """Ends this process after the stage's process, which holds the lock; two groups must not share a scratch folder."""
    with file_lock(lock):
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
