"""Runs the process that sends spools to MLflow: in order, with retries, each entry once.

Its standard input names the spool. The word "end" then means: send the rest and exit. An end of input without that word
means that the parent was killed; the shipper exits at once, and the next run or `sync` sends the rest. MLflow stores
absolute paths, so after a workspace was moved, its database is updated first.
"""

from selftrain.ssl_tasks.execution.startup import die_with_parent, own_process

if __name__ == "__main__":
    die_with_parent()  # before the imports below: on a busy machine they take seconds

import contextlib
import json
import logging
import os
import select
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.locks import file_lock
from selftrain.ssl_tasks.tracking.client import connect, experiment_id
from selftrain.ssl_tasks.tracking.operations import Applier, Later
from selftrain.ssl_tasks.tracking.spool import Operation, Sent, Spool, remove, spools, without_password
from selftrain.ssl_tasks.tracking.tracker import Report

if TYPE_CHECKING:
    from mlflow import MlflowClient


log = logging.getLogger("selftrain.tracking")
TRIES = 4
FIRST_PAUSE, LONGEST_PAUSE, POLL = 0.25, 30.0, 0.25


class ServerAway(Exception):
    """Raised if MLflow does not answer."""


class Shipper:
    """Replays spools to one server; with `everything`, also spools for other servers."""

    def __init__(self, workspace: Path, uri: str, everything: bool = False) -> None:
        self.workspace, self.uri, self.everything = workspace, uri, everything
        self.sent = self.rejected = 0
        self.reason = ""
        self.client: MlflowClient | None = None
        self.appliers: dict[Path, tuple[Applier, Sent]] = {}
        self.finished: set[Path] = set()
        self.champions: dict[Path, str] = {}  # by spool: the sentence about its model that became champion

    def connect_ahead(self) -> None:
        """Imports MLflow and sets up its database ahead of time; an error occurs again later and is reported then."""
        with contextlib.suppress(Exception):
            self.client = connect(self.uri, self.workspace)

    def ship_left(self, own: Spool | None) -> None:
        """Sends the spools of dead processes and ends the runs that they left open."""
        for spool in self._waiting():
            if spool.path in self.finished or (own is not None and spool.path == own.path):
                continue
            try:
                with file_lock(spool.path.with_suffix(".lock"), blocking=False):
                    if spool.path.exists() and spool.dead:
                        self.finish(spool, again=own is None)
                        self.finished.add(spool.path)
            except BlockingIOError:
                continue  # another process is sending it

    def ship(self, spool: Spool) -> None:
        """Sends everything new in a spool."""
        applier, sent = self._applier(spool)
        for offset, operation in spool.operations(sent.offset):
            self._send(applier, sent, operation, offset)
            if applier.champion:
                self.champions[spool.path] = applier.champion

    def finish(self, spool: Spool, again: bool = False) -> None:
        """Sends the rest of a spool that is complete; with `again`, also operations refused earlier."""
        applier, sent = self._applier(spool)
        refused = list(sent.rejected) if again else []
        self.ship(spool)
        for run, seconds in spool.open_runs().items():
            if applier.find_run(run) is not None:
                self._send(applier, sent, {"kind": "end", "run": run, "ending": "KILLED", "time": seconds}, sent.offset)
        if refused:
            self._retry(applier, sent, refused)
        if not sent.rejected:
            remove(spool)

    def left(self, own: Spool | None) -> int:
        """Counts the operations that wait for this server in spools of dead processes and in our own."""
        counted = [spool for spool in self._waiting() if spool.dead or (own is not None and spool.path == own.path)]
        return sum(1 for spool in counted for _ in spool.operations(Sent.load(spool, self.uri).offset))

    def _waiting(self) -> list[Spool]:
        address = without_password(self.uri)
        return [spool for spool in spools(self.workspace) if self.everything or spool.header["uri"] == address]

    def _applier(self, spool: Spool) -> tuple[Applier, Sent]:
        if spool.path not in self.appliers:
            try:
                self.client = self.client or connect(self.uri, self.workspace)
                experiment = experiment_id(self.client, spool.header["experiment"], self.workspace)
            except ConfigError:
                raise
            except Exception as error:  # any error of MLflow, a driver or a socket means no connection
                raise ServerAway(first_line(error)) from error
            sent = Sent.load(spool, self.uri)
            applier = Applier(self.client, experiment, sent.ids, lambda artifact: self._is_pending(artifact, spool))
            self.appliers[spool.path] = applier, sent
        return self.appliers[spool.path]

    def _is_pending(self, artifact: Artifact, own: Spool) -> bool:
        return any(
            operation["kind"] == "artifact" and operation["manifest"]["key"] == artifact.key
            for spool in self._waiting()
            if spool.path != own.path
            for _, operation in spool.operations()
        )

    def _send(self, applier: Applier, sent: Sent, operation: Operation, offset: int) -> None:
        reason = self._try(applier, operation)
        learned = {"ids": dict(applier.learned)} if applier.learned else {}
        applier.learned.clear()
        if reason is None:
            self.sent += 1
            sent.mark(offset, **learned)
        else:
            self.rejected += 1
            log.error("MLflow refuses %s: %s", operation["kind"], reason)
            sent.mark(offset, **learned, rejected={**operation, "reason": reason})

    def _retry(self, applier: Applier, sent: Sent, refused: list[dict[str, Any]]) -> None:
        """Retries refused operations; those refused again remain recorded."""
        still = []
        for operation in refused:
            if (reason := self._try(applier, operation)) is None:
                self.sent += 1
            else:
                self.rejected += 1
                still.append({**operation, "reason": reason})
        sent.mark(sent.offset, ids=dict(applier.learned), retried=still + sent.rejected[len(refused) :])
        applier.learned.clear()

    def _try(self, applier: Applier, operation: Operation) -> str | None:
        """Applies one operation; returns why the server refused it, or None. Raises ServerAway if it does not
        answer."""
        reason = ""
        for number in range(TRIES):
            try:
                applier.apply(operation)
                return None
            except Later:
                raise
            except Exception as error:  # noqa: BLE001 - MLflow's stores raise anything; whether it lives decides
                reason = f"{type(error).__name__}: {first_line(error)}"
                self._ping(applier, reason)
                log.warning("try %d of %s: %s", number + 1, operation["kind"], reason)
                time.sleep(FIRST_PAUSE * 2**number if number + 1 < TRIES else 0)
        return reason

    def _ping(self, applier: Applier, reason: str) -> None:
        try:
            applier.client.get_experiment(applier.experiment)
        except Exception as error:
            self.appliers.clear()
            self.client = None
            raise ServerAway(reason) from error


def first_line(error: BaseException) -> str:
    """Returns the first line of an error, short enough for a log."""
    return without_password((str(error).strip() or repr(error)).splitlines()[0])[:500]


class Parent:
    """The parent process, known by standard input: it names the spool, says "end", or dies."""

    def __init__(self) -> None:
        self.ending = False
        self.number = os.getppid()

    def line(self) -> str:
        """Returns the next line; exits if none will come. It reads byte by byte, because `select` does not see a
        buffer."""
        line = b""
        while not line.endswith(b"\n"):
            if not (more := os.read(0, 1)):
                os._exit(1)
            line += more
        return line.decode().strip()

    def wait(self, seconds: float) -> None:
        """Pauses until the parent writes; exits at once if the parent is dead."""
        if self.ending:
            return
        if select.select([sys.stdin], [], [], seconds)[0]:
            self.ending = self.line() == "end"
        if os.getppid() != self.number:
            os._exit(1)


def serve(shipper: Shipper, own: Spool | None, parent: Parent) -> None:
    """Replays until the parent says "end" and all is sent, or the server is away."""
    pause = FIRST_PAUSE
    while True:
        last = parent.ending
        try:
            shipper.ship_left(own)
            if own is not None and last:
                shipper.finish(own)
            elif own is not None:
                shipper.ship(own)
            shipper.reason, pause = "", FIRST_PAUSE
            if last:
                return
            parent.wait(POLL)
        except Later:  # our operation refers to one that another process will send
            time.sleep(POLL)
            parent.wait(0)
        except ServerAway as error:
            shipper.reason = f"MLflow does not answer: {error}"
            log.warning("%s; trying again in %.1f s", shipper.reason, pause)
            if last:
                return
            parent.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        except ConfigError as error:
            shipper.reason = str(error)
            log.error("%s", error)
            if last:
                return
            parent.wait(LONGEST_PAUSE)


def main() -> None:
    """Runs `python -m selftrain.ssl_tasks.tracking.shipper WORKSPACE EVERYTHING`, which the tracker starts."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # These signals reach the whole group; the parent decides when this process ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # MLflow prints to stdout, where only the report may appear
    own_process()
    workspace, everything = Path(sys.argv[1]), bool(int(sys.argv[2]))
    uri = os.environ["SELFTRAIN_TRACKING_URI"]
    os.environ["MLFLOW_TRACKING_URI"] = uri  # a database's model registry finds models through it
    parent = Parent()
    shipper = Shipper(workspace, uri, everything)
    shipper.connect_ahead()
    name = parent.line()
    own = Spool(workspace / "tracking" / "spool" / name) if name else None
    with file_lock(own.path.with_suffix(".lock")) if own is not None else contextlib.nullcontext():
        serve(shipper, own, parent)
        champion = shipper.champions.get(own.path, "") if own is not None else ""
        report = Report(shipper.sent, shipper.left(own), shipper.rejected, shipper.reason, champion)
    answer.write("\n" + json.dumps(asdict(report)) + "\n")  # on its own line, whatever was printed before
    answer.flush()


if __name__ == "__main__":
    main()
