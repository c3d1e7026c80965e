"""Processes of a removed container or a retired host count as dead; those under another host name do not."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from selftrain.ssl_tasks.store import locks
from selftrain.ssl_tasks.store.runs import Run, all_runs
from selftrain.ssl_tasks.tracking.spool import Spool, spools, waiting_elsewhere

LEAVE_RECORDS = """
import sys, time
from pathlib import Path
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.runs import Run
from selftrain.ssl_tasks.tracking.spool import Spool
Run.create(Path(sys.argv[1]), RunConfig())
Spool.create(Path(sys.argv[1]), "sqlite:///x", "x")
print("there", flush=True)
time.sleep(600)
"""
SERVED = "nfs4, locked by its server"


@contextmanager
def elsewhere(workspace: Path) -> "Iterator[tuple[subprocess.Popen[str], Run, Spool]]":
    """A process that has a run and a spool, as if it were in another container."""
    process = subprocess.Popen([sys.executable, "-c", LEAVE_RECORDS, str(workspace)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        (run,), (spool,) = all_runs(workspace), spools(workspace)
        here = str(run.info["host"])
        run.update(host="4f1c-gone")
        spool.path.write_text(spool.path.read_text().replace(here, "4f1c-gone"))
        yield process, run, spool
    finally:
        process.kill()
        process.communicate()


def believed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Trusts locks on the file system of the tests' folder."""
    monkeypatch.setattr(locks, "OF_ONE_KERNEL", {locks.file_system(folder)})


def test_a_run_of_another_host_name_is_dead_when_its_process_is_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    believed(monkeypatch, tmp_path)
    with elsewhere(tmp_path) as (process, run, spool):
        assert (run.mend(), spool.dead) == (False, False)
        assert "on 4f1c-gone" in waiting_elsewhere(tmp_path)[0]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (run.mend(), spool.dead) == (True, True)
        assert run.info["state"] == "crashed"
        assert waiting_elsewhere(tmp_path) == []


@pytest.mark.parametrize("here", ["fuse.sshfs", "nfs4", "nfs", "ext4", ""])
def test_a_run_of_another_host_counts_as_alive_if_its_lock_might_be_invisible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    with elsewhere(tmp_path) as (process, run, spool):
        there = SERVED if here == "ext4" else here  # a client of a server, and the server's own disk
        run.update(locks_on=there)
        header = {**spool.header, "locks_on": there}
        spool.path.write_text(json.dumps(header) + "\n")
        monkeypatch.setattr(locks, "file_system", lambda _folder: here)
        process.kill()
        process.wait()
        assert not run.mend()
        assert not spool.dead
        (sentence,) = waiting_elsewhere(tmp_path)
        assert f"touch {spool.path.with_suffix('.closed')}" in sentence
        spool.close()
        assert waiting_elsewhere(tmp_path) == []


def test_locks_that_the_server_of_a_shared_disk_keeps_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "file_system", lambda _folder: SERVED)
    with elsewhere(tmp_path) as (process, run, _):
        run.update(locks_on=SERVED)
        assert not run.mend()
        process.kill()
        process.wait()
        assert run.mend()


def test_records_without_locks_count_as_alive(tmp_path: Path) -> None:
    assert not locks.freed({"host": "old", "pid": 1, "pid_started": 0.0}, tmp_path)


def test_a_process_that_ends_leaves_no_lock(tmp_path: Path) -> None:
    words = LEAVE_RECORDS.replace("time.sleep(600)", "")
    subprocess.run([sys.executable, "-c", words, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    assert list((tmp_path / locks.PROCESSES).iterdir()) == []


def test_a_command_that_ends_leaves_no_lock(tmp_path: Path) -> None:
    """It ends without Python's own clean-up, which takes a second."""
    code = """
import sys
from selftrain.flows.cli import main as cli
from selftrain.ssl_tasks.store.locks import held_lock
from pathlib import Path
cli.answer = lambda _: held_lock(Path(sys.argv[1])) and 0
cli.main()
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    assert list((tmp_path / locks.PROCESSES).iterdir()) == []


def test_locks_of_killed_processes_are_removed_and_those_of_living_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    believed(monkeypatch, tmp_path)
    folder = tmp_path / locks.PROCESSES
    with elsewhere(tmp_path):
        (living,) = folder.iterdir()
        (folder / "dead").touch()
        take = """
import sys
from pathlib import Path
from selftrain.ssl_tasks.store import locks as p
p.OF_ONE_KERNEL = {p.file_system(Path(sys.argv[1]))}
p.held_lock(Path(sys.argv[1]))
print(*Path(sys.argv[2]).iterdir())
"""
        words = [sys.executable, "-c", take, str(tmp_path), str(folder)]
        left = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
        assert str(living) in left
        assert len(left) == 2, "its own, too"


def test_many_processes_that_take_locks_and_remove_dead_ones_never_lose_their_own(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from selftrain.ssl_tasks.store import locks as p
folder = Path(sys.argv[1])
p.OF_ONE_KERNEL = {p.file_system(folder)}
for at in range(200):
    lock = p.held_lock(folder / "w")["lock"]
    assert (folder / "w" / p.PROCESSES / lock).exists()
    p.release()
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    racing = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [one.communicate()[1] for one in racing] == [""] * 4
