"""Spill folders of queries are removed: at their end, at SIGTERM, and after SIGKILL by the next query."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from selftrain.ssl_tasks.pseudo_labels.engine import spill_folder

SPILLING = """
from selftrain.ssl_tasks.errors import Interrupted
from selftrain.ssl_tasks.pseudo_labels.engine import open_spilling
try:
    with open_spilling(0.06) as connection:
        print("open", flush=True)
        connection.execute("SELECT count(*) FROM range(10000000000) a, range(1000000) b").fetchall()
except Interrupted as error:
    print(error)
    raise SystemExit(error.exit_code)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of the test and of the processes that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def spilled(temporary: Path) -> list[Path]:
    """The folders that queries of live or dead processes have."""
    return [path for path in temporary.glob("selftrain-spill-*/*") if path.is_dir()]


def test_the_folder_is_removed_at_the_end_also_of_a_failed_query(temporary: Path) -> None:
    with spill_folder() as folder:
        (folder / "spilled").write_bytes(b"x")
        assert spilled(temporary) == [folder]
    with pytest.raises(RuntimeError, match="failed"), spill_folder():
        raise RuntimeError("failed")
    assert spilled(temporary) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_killed_query_leaves_nothing_that_the_next_one_does_not_remove(temporary: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SPILLING], stdout=subprocess.PIPE, text=True, restore_signals=True,
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGHUP)],
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    (abandoned,) = spilled(temporary)
    with spill_folder() as own:  # the other process lives: its folder stays
        assert set(spilled(temporary)) == {abandoned, own}
    time.sleep(0.3)  # so that the query runs
    process.send_signal(number)
    said, _ = process.communicate(timeout=300)
    if number == signal.SIGKILL:
        assert spilled(temporary) == [abandoned]
    else:
        assert (process.returncode, spilled(temporary)) == (130, []), said
    with spill_folder() as own:
        assert spilled(temporary) == [own]


def test_a_folder_that_another_user_prepared_is_not_used(temporary: Path) -> None:
    with spill_folder() as folder:
        root = folder.parent
    outside = temporary / "outside"
    (outside / "precious").mkdir(parents=True)
    for path in sorted(root.iterdir()):
        path.unlink()
    root.rmdir()
    root.symlink_to(outside)
    with spill_folder() as folder:
        assert not folder.is_relative_to(outside)
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    assert os.listdir(outside / "precious") == []
