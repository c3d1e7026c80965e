"""SIGTERM, Ctrl-C and SIGHUP end every command from its first instruction on; what is ignored stays ignored."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from selftrain.flows.rounds.interruption import interruptible
from selftrain.ssl_tasks.errors import Interrupted
from tests.clock import HANG, until
from tests.flows.claims import assert_nobody_is_left, kill_marked, marked
from tests.flows.test_kills import start
from tests.flows.test_up import servers, up
from tests.flows.tiny import command, environment, last


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


def listens(process: "subprocess.Popen[str]") -> bool:
    """Whether its first instruction is behind it: SIGTERM has a handler."""
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (caught,) = (line.split()[1] for line in status if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def interrupted(number: signal.Signals, seconds: float, *words: str) -> float:
    """Starts a command, sends a signal to its group so long after its first instruction, and checks how it ends.
    Returns how long it lived after the signal."""
    changes = {"SELFTRAIN_TEST": words[0]}
    process = subprocess.Popen(
        command(Path(words[0]), *words[1:]),
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not listens(process):
            time.sleep(0.005)
        time.sleep(seconds)
        os.killpg(process.pid, number)
        began = time.monotonic()
        said = process.communicate(timeout=HANG)
        assert process.returncode == 130, said
        assert "Traceback" not in said[1]
        assert "continue" in said[1], "it says how to continue"
        assert_nobody_is_left(words[0])
        return time.monotonic() - began
    finally:
        kill_marked(words[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "moments", "span"),
    [
        (("up", "quickstart", "--port", "0", "--mlflow-port", "0"), 3, 6.0),
        (("run", "quickstart", "--set", "teacher.train.steps=1000000"), 3, 6.0),
        (("status",), 4, 0.4),
        pytest.param(("up", "quickstart", "--port", "0", "--mlflow-port", "0"), 12, 9.0, marks=pytest.mark.long),
        pytest.param(("run", "quickstart", "--set", "teacher.train.steps=1000000"), 12, 9.0, marks=pytest.mark.long),
    ],
)
def test_a_signal_in_the_first_seconds_ends_every_command(
    fresh: Path, words: tuple[str, ...], moments: int, span: float
) -> None:
    """The moments are spread over the imports, Prefect's start and MLflow's; none is lost, and nothing is left."""
    for at in range(moments):
        number = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[at % 3]
        interrupted(number, span * at / moments, str(fresh), *words)


def test_a_signal_that_an_import_swallows_ends_the_command_all_the_same() -> None:
    code = """
import signal, time
from selftrain.flows.rounds.interruption import end_on_signals
end_on_signals()
try:
    signal.raise_signal(signal.SIGTERM)
except BaseException:
    time.sleep(600)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, check=False)
    assert (ended.returncode, ended.stderr) == (130, "selftrain: interrupted; run the same command again to continue\n")


def test_work_whose_interruption_was_swallowed_sees_that_it_was_asked() -> None:
    with interruptible() as asked:
        assert not asked()
        with contextlib.suppress(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked()


@pytest.mark.slow
def test_a_run_whose_terminal_ends_is_interrupted(fresh: Path, recipe: str) -> None:
    """The signal reaches the whole group: the fork server and the shipper too."""
    run = start(fresh, "run", recipe, "--no-prefect", "--set", "teacher.train.steps=1000000")
    while run.poll() is None and not list(fresh.glob("store/attempts/train-*/scratch/*")):  # its first checkpoint
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGHUP)
    assert run.wait(HANG) == 130
    assert_nobody_is_left(str(fresh))
    assert (last(fresh).info["state"], last(fresh).stage("teacher").state) == ("interrupted", "interrupted")


@pytest.mark.slow
def test_under_nohup_a_run_and_its_stages_survive_the_end_of_the_terminal(copy: Path, recipe: str) -> None:
    words = command(copy, "run", recipe, "--set", "rounds=[]", "--set", "teacher.train.steps=300")
    given = environment(SELFTRAIN_TEST=str(copy))
    nohup = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]
    run = subprocess.Popen([*nohup, *words], env=given, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: run.poll() is not None or list(copy.glob("store/attempts/train-*/scratch/*")), "a checkpoint")
    for one in marked(str(copy)):  # a stage has a group of its own; `nohup` is for all that comes from it
        one.send_signal(signal.SIGHUP)
    said = run.communicate(timeout=HANG)[1]
    assert run.returncode == 0, said
    assert last(copy).stage("teacher").state == "computed"


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(signal.SIGHUP, marks=pytest.mark.long), signal.SIGKILL])
def test_no_server_outlives_the_command_that_started_it(fresh: Path, number: signal.Signals) -> None:
    with up(fresh, fresh.parent) as process:
        servers(process)
        process.send_signal(number)
        assert process.wait(HANG) == (130 if number == signal.SIGHUP else -number)
        assert_nobody_is_left(str(fresh))


def test_mlflows_server_ends_when_its_parent_does_even_before_it_serves(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "selftrain.ssl_tasks.tracking.server"]
    asked = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "folder": str(tmp_path), "socket": 0, "password": "a:b"}
    for line, code in ((json.dumps(asked) + "\n", -signal.SIGKILL), ("", 0)):
        child = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True, cwd=tmp_path, text=True)
        assert child.stdin is not None
        child.stdin.write(line)
        child.stdin.close()
        assert child.wait(HANG) == code
