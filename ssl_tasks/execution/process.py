"""Runs a stage's body in a process group of its own, which can be killed as a whole and then frees all its memory.

A fork server that has already imported torch starts it in some hundredths of a second. The group ends when this process
ends, however it ends (`selftrain.ssl_tasks.execution.startup`).
"""

import contextlib
import errno
import json
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from selftrain.ssl_tasks import errors
from selftrain.ssl_tasks.execution.devices import lease, needed
from selftrain.ssl_tasks.execution.stage import Request, StageContext, StageResult, load_body
from selftrain.ssl_tasks.execution.startup import end_group_after, in_environment, parent_of_mine, safe_path
from selftrain.ssl_tasks.reading import Malformed, Shape, read_json
from selftrain.ssl_tasks.store.locks import file_lock

GRACE_SECONDS = 30.0  # seconds between asking a worker to stop and killing it
PRELOAD = ["selftrain.ssl_tasks.preload"]
RESULT = "result.json"
NO_SPACE = errno.ENOSPC  # exit code of a worker that cannot write its error on a full disk

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(PRELOAD)
_live: set[BaseProcess] = set()
_asked: set[BaseProcess] = set()  # workers that were asked to stop
_start_lock = threading.Lock()


class Answer(Shape):
    """The answer that a worker leaves for its parent: a result, or an error."""

    summary: dict[str, Any] | None = None
    parts: dict[str, str] | None = None
    error: str | None = None
    message: str = ""


def start_fork_server() -> None:
    """Starts the fork server before the first stage needs it, because its imports take seconds."""
    with _starting():
        multiprocessing.forkserver.ensure_running()


def await_fork_server() -> None:
    """Starts it, and returns once it can start a stage at once."""
    worker = _forkserver.Process(target=int)
    with _starting(), _without_main_module():
        worker.start()
    worker.join()


def run_isolated(request: Request, context: StageContext, log: Path | None = None) -> StageResult:
    """Runs the body in a worker, waits, and returns its result or raises its error; a request to stop is passed on."""
    attempt = context.output.parent
    (attempt / RESULT).unlink(missing_ok=True)
    log = log or attempt / "log.txt"
    begun, begins = _forkserver.Pipe(duplex=False)
    gpus = needed(request.stage, context.runtime)
    words = (request.body, context, attempt, log, gpus, begins)
    worker = _forkserver.Process(target=_work, args=words, name=request.name)
    with _starting(), _without_main_module():  # starts a dead fork server again
        worker.start()
    _live.add(worker)
    begins.close()  # the worker closes its own copy when it begins
    try:
        multiprocessing.connection.wait(
            [begun, worker.sentinel]
        )  # time that passes while others hold the GPUs is not counted
        worker.join(context.runtime.stage_timeout)
        if worker.exitcode is None:
            stop(worker)
            raise errors.StageFailed(
                request.name, f"took longer than runtime.stage_timeout = {context.runtime.stage_timeout:g} s", str(log)
            )
    finally:
        if worker.exitcode is None:  # a signal or an exception reached us while we waited
            stop(worker)
        _live.discard(worker)
        _asked.discard(worker)
        begun.close()
    return _read_result(request.name, attempt / RESULT, worker.exitcode, log)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Prepares the environment in which a fork server may be started, within the block.

    The fork server inherits that Ctrl-C is blocked; if not, Ctrl-C during its start would print a traceback. The
    resource tracker is started first, because starting it unblocks Ctrl-C.
    """
    with _start_lock, in_environment({**safe_path(), **parent_of_mine()}):
        multiprocessing.resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Hides the main module within the block; multiprocessing would run the user's script again in every worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def stop(*workers: BaseProcess) -> None:
    """Asks workers once to write a checkpoint and exit (a second signal would end them), then kills their groups."""
    for worker in workers:
        if worker not in _asked:
            _asked.add(worker)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid or 0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    for worker in workers:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.pid or 0, signal.SIGKILL)
        worker.join()


def stop_all() -> None:
    """Stops every worker that still runs; stages that run in threads get no signals."""
    stop(*_live)


def _work(body: str, context: StageContext, attempt: Path, log: Path, gpus: int, begins: Connection) -> None:
    """Runs in the worker: makes its process group and log, runs the body, and writes the result as one JSON file."""
    os.setsid()
    end_group_after(_parent_is_gone)
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, force=True
    )
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # A worker whose parent was just killed may still run: two must never write into one scratch folder.
        with file_lock(attempt / "worker.lock"), lease(context.runtime.device, gpus) as device:
            begins.close()
            runtime = context.runtime.model_copy(update={"device": device})
            result = load_body(body)(replace(context, runtime=runtime))
        answer: dict[str, Any] = {"summary": dict(result.summary), "parts": dict(result.parts)}
    except BaseException as error:  # noqa: BLE001 - the parent must be told of any error
        _print_trace()
        answer = errors.describe(error)
    code = _write_answer(attempt / RESULT, answer)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    if code:
        os._exit(code)  # threads of a failed body must not keep the process alive


def _write_answer(path: Path, answer: dict[str, Any]) -> int:
    """Writes the answer for the parent and returns our exit code, which alone reports a full disk."""
    try:
        path.write_text(json.dumps(answer, default=str))
        return int("error" in answer)
    except OSError as error:
        _print_trace()
        path.unlink(missing_ok=True)  # an incomplete answer
        return NO_SPACE if errors.out_of_space(error) else 1


def _print_trace() -> None:
    with contextlib.suppress(OSError):  # the log may be on the same full disk
        traceback.print_exc()


def _interrupt(*_: Any) -> None:
    raise errors.Interrupted("asked to stop")


def _parent_is_gone() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        multiprocessing.connection.wait([parent.sentinel])


def _read_result(name: str, path: Path, exitcode: int | None, log: Path) -> StageResult:
    if not path.exists():
        if exitcode == NO_SPACE:
            raise errors.SelftrainError(
                f"no space left to write {path.parent}. Free some (`selftrain clean` lists files to "
                "delete) and run again"
            )
        if exitcode is not None and exitcode < 0:
            number = signal.Signals(-exitcode)
            memory = (
                ", which often means that the host ran out of memory. Lower train.batch_size or runtime.workers"
                if number is signal.SIGKILL
                else ""
            )
            raise errors.StageFailed(name, f"its process was killed by {number.name}{memory}", str(log))
        raise errors.StageFailed(name, f"its process ended with code {exitcode} and without a result", str(log))
    try:
        answer = read_json(path, Answer)
    except Malformed as error:
        raise errors.StageFailed(
            name, f"its result {path} is damaged ({error}); run the same command again", str(log)
        ) from error
    if answer.get("error") is None:
        return StageResult(summary=answer.get("summary", {}), parts=answer.get("parts", {}))
    raise errors.described(answer, stage=name, log=str(log))
