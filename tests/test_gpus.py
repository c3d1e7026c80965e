"""GPUs are leased by the names that the process may use, all at once, to one stage at a time.

The GPUs are pretended by CUDA_VISIBLE_DEVICES; the leases, the locks and the processes are real.
"""

import contextlib
import multiprocessing.forkserver
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selftrain.flows.rounds.stages import VERSIONS
from selftrain.ssl_tasks.errors import ConfigError, StageFailed
from selftrain.ssl_tasks.execution.devices import lease, needed, visible_gpus
from selftrain.ssl_tasks.execution.stage import Request
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.locks import file_lock
from tests.bodies import Behaviour, isolated
from tests.clock import HANG

UUIDS = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-GPU-4106c12f/1/0"


@pytest.fixture(scope="module", autouse=True)
def locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the locks of these tests. A fork server of their own knows of it, and of two GPUs."""
    folder = tmp_path_factory.mktemp("locks")
    server: Any = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
    server._stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFTRAIN_LOCKS", str(folder))
        patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        yield folder
    server._stop()


@contextlib.contextmanager
def leased(device: str, processes: int = 1) -> Iterator[tuple[str, list[str]]]:
    """A lease: what the device is called within, and which GPUs are seen there."""
    before = os.environ["CUDA_VISIBLE_DEVICES"]
    with lease(device, processes) as name:
        try:
            held, os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus(), before
            yield name, held
        finally:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def request(how: str = "device") -> Request:
    """A request to a body that behaves so."""
    return Request("greet", "predict", 1, "tests.bodies:behave", Behaviour(how=how))


@pytest.mark.parametrize(
    ("visible", "device", "called", "held"),
    [
        ("0,1", "cuda:1", "cuda", ["1"]),
        ("4,5", "cuda:0", "cuda", ["4"]),
        (" 4, 5", "cuda:1", "cuda", ["5"]),
        ("4,5", "cuda", "cuda", ["4"]),
        ("4,5", "auto", "auto", ["4"]),
        (UUIDS, "cuda:0", "cuda", UUIDS.split(",")[:1]),
        (UUIDS, "cuda:1", "cuda", UUIDS.split(",")[1:]),
    ],
)
def test_an_index_counts_the_gpus_that_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, visible: str, device: str, called: str, held: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with leased(device) as found:
        assert found == (called, held)


def test_training_takes_a_gpu_for_each_process_and_what_computes_on_none_waits_for_none() -> None:
    runtime = RuntimeSettings(processes=4)
    assert {stage: needed(stage, runtime) for stage in VERSIONS} == {
        **{"dataset": 0, "weights": 0, "check": 0, "given": 0, "select": 0, "gate": 0},
        **{"train": 4, "features": 1, "predict": 1, "evaluate": 1},
    }
    with leased("cuda", 2), lease("cuda", 0) as name:  # does not wait
        assert name == "cuda"


@pytest.mark.parametrize(("device", "visible"), [("cpu", "0,1"), ("auto", ""), ("cuda:1", "-1,0")])
def test_without_gpus_nothing_is_leased(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("SELFTRAIN_LOCKS", str(tmp_path / "locks"))
    with lease(device, 1) as called:
        assert (called, os.environ["CUDA_VISIBLE_DEVICES"], (tmp_path / "locks").exists()) == (device, visible, False)


def test_an_index_beyond_the_gpus_is_refused(workspace: Path) -> None:
    with pytest.raises(ConfigError, match=r"'cuda:2' is not there: this process may use 2 GPUs \(0, 1\)"):
        isolated(request(), workspace, RuntimeSettings(device="cuda:2"))


def test_a_body_finds_the_leased_gpu_as_its_only_one(workspace: Path) -> None:
    asked = RuntimeSettings(device="cuda:1")
    found = isolated(request(), workspace, asked).summary
    assert (found["device"], found["visible"]) == ("cuda", "1")


def test_several_processes_wait_until_each_has_a_gpu(locks: Path) -> None:
    begun, got = threading.Event(), []

    def wait_for_two() -> None:
        begun.set()
        with leased("cuda", processes=2) as (_, held):
            got.append(held)

    waiter = threading.Thread(target=wait_for_two)
    with file_lock(locks / "gpu-1.lock"):
        waiter.start()
        begun.wait()
        time.sleep(0.5)
        assert got == []
        with leased("cuda:0") as (_, held):
            assert held == ["0"], "who waits keeps nobody from the other"
    waiter.join(HANG)
    assert got == [["0", "1"]]


def test_more_processes_than_gpus_take_all_there_are() -> None:
    with leased("cuda", processes=3) as (_, held):
        assert held == ["0", "1"]


def test_two_that_want_all_gpus_have_them_one_after_the_other() -> None:
    inside, most = [], []

    def want_all() -> None:
        for _ in range(20):
            with lease("cuda", 2):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    pair = [threading.Thread(target=want_all, daemon=True) for _ in range(2)]
    for one in pair:
        one.start()
    for one in pair:
        one.join(HANG)
    assert (len(most), max(most)) == (40, 1)


def test_the_wait_for_a_gpu_is_no_part_of_the_stages_time(workspace: Path, locks: Path) -> None:
    asked = RuntimeSettings(device="cuda:0", stage_timeout=2.0)
    held = contextlib.ExitStack()
    held.enter_context(file_lock(locks / "gpu-0.lock"))
    timer = threading.Timer(6.0, held.close)
    timer.start()
    isolated(request("write"), workspace, asked)
    timer.join()
    with pytest.raises(StageFailed, match=r"longer than runtime.stage_timeout = 2 s"):
        isolated(request("hang"), workspace, asked)
