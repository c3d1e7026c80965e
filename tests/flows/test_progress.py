"""The progress of a stage is a bar on a terminal, and a line every ten seconds elsewhere."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from selftrain.ssl_tasks.execution import progress
from selftrain.ssl_tasks.execution.progress import Lines
from tests.clock import HANG

ON_A_TERMINAL = """
import logging, time
from selftrain.flows.cli.main import _log_to_stderr
from selftrain.ssl_tasks.execution.progress import Bars, display
_log_to_stderr()
shown = display()
assert isinstance(shown, Bars)
with shown.stage("student-1") as show, shown.stage("student-1-member-2") as second:
    show(3, 10, "train")
    second(7, 10, "train")
    logging.getLogger("selftrain").info("a line of the log")
    time.sleep(0.8)
print("the result")
"""


def test_on_a_terminal_each_stage_at_work_has_a_bar() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_TERMINAL],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        timeout=HANG,
        check=True,
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert "student-1 · train" in shown
    assert "3/10" in shown
    assert "student-1-member-2 · train" in shown
    assert "7/10" in shown
    assert "a line of the log\r\n" in shown.replace("\x1b[0m", "")
    assert done.stdout == b"the result\n"


def test_elsewhere_there_is_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lines = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress.log, "info", lambda text, *values: lines.append(text % values))
    with Lines().stage("teacher") as show:
        for step in range(1, 26):  # one a second
            clock[0] += 1.0
            show(step, 300, "train")
    assert lines == ["teacher · train 10/300", "teacher · train 20/300"]


def test_stderr_in_a_file_gets_lines(tmp_path: Path) -> None:
    code = "from selftrain.ssl_tasks.execution.progress import Lines, display; assert isinstance(display(), Lines)"
    with (tmp_path / "stderr").open("w") as file:
        subprocess.run([sys.executable, "-c", code], stderr=file, check=True)
