"""SIGTERM, and SIGHUP where it is not ignored, end a block in order; a terminal that says it twice disturbs nothing."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows.interruption import interruptible
from ssl_tasks.errors import Interrupted
from tests.flows.claims import assert_nobody_is_left
from tests.flows.test_kills import start
from tests.flows.test_up import addresses, up
from tests.flows.tiny import last


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_an_interruption_and_handlers_are_as_before(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="asked to stop"), interruptible():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_the_end_of_a_terminal_is_told_once() -> None:
    with interruptible():
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)


def test_under_nohup_the_end_of_a_terminal_changes_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_than_the_main_one_handles_no_signals() -> None:
    reached = []

    def block() -> None:
        with interruptible():
            reached.append(True)

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert reached


@pytest.mark.slow
def test_a_run_whose_terminal_ends_is_interrupted(fresh: Path, recipe: str) -> None:
    """The signal reaches the whole group: the fork server and the shipper too."""
    run = start(fresh, "run", recipe, "--no-prefect", "--set", "teacher.train.steps=1000000")
    while run.poll() is None and not list(fresh.glob("store/attempts/train-*/scratch/*")):  # its first checkpoint
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGHUP)
    assert run.wait(120) == 130
    assert_nobody_is_left(str(fresh))
    assert (last(fresh).info["state"], last(fresh).stage("teacher").state) == ("interrupted", "interrupted")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_no_server_outlives_the_command_that_started_it(fresh: Path, number: signal.Signals) -> None:
    with up(fresh, fresh.parent) as process:
        addresses(process)
        process.send_signal(number)
        assert process.wait(120) == (130 if number == signal.SIGHUP else -number)
        assert_nobody_is_left(str(fresh))


def test_mlflows_server_ends_when_its_parent_does_even_before_it_serves(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "ssl_tasks.tracking.server", "server", "--port", "0"]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True, cwd=tmp_path)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(60) == -signal.SIGKILL
