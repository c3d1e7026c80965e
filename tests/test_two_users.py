"""Two users of one host, or of one workspace: each takes the locks that the other has made."""

import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selftrain.ssl_tasks.execution.devices import lease
from selftrain.ssl_tasks.store.locks import file_lock

NOBODY = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that all users can read; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_another_user(act: Callable[[], None]) -> None:
    """Runs it as the user `nobody`, in a forked child, because that user may not read our Python."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            act()
        except BaseException:  # noqa: BLE001 - the parent hears of it by our exit code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_the_lock_of_another_user_is_taken_where_it_can_only_be_read(folder: Path) -> None:
    lock = folder / "lock"
    lock.touch(0o644)

    def take() -> None:
        with file_lock(lock, blocking=False):
            pass

    def meet_the_holder() -> None:
        with pytest.raises(BlockingIOError):
            take()

    as_another_user(take)
    with file_lock(lock):
        as_another_user(meet_the_holder)


def test_a_folder_that_may_not_be_written_is_said_to_be_so(folder: Path) -> None:
    def make_a_lock() -> None:
        with pytest.raises(PermissionError), file_lock(folder / "new"):
            pass

    as_another_user(make_a_lock)


def test_a_lock_is_as_open_as_the_umask_allows(folder: Path) -> None:
    before = os.umask(0o002)
    try:
        with file_lock(folder / "lock"):
            assert (folder / "lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


def test_two_users_share_the_gpus_whatever_their_umask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFTRAIN_LOCKS", str(folder / "locks"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    def lease_the_other_one() -> None:
        with lease("cuda", 1):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"

    def lease_both() -> None:
        with lease("cuda", 2):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"

    before = os.umask(0o077)
    try:
        with lease("cuda:0", 1):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
            as_another_user(lease_the_other_one)
    finally:
        os.umask(before)
    as_another_user(lease_both)
    lease_both()
    assert (folder / "locks").stat().st_mode & 0o7777 == 0o1777


def test_a_link_in_the_locks_place_opens_no_file_to_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFTRAIN_LOCKS", str(folder))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (folder / "secret").touch(0o600)
    (folder / "gpu-0.lock").symlink_to(folder / "secret")
    with lease("cuda", 1):
        assert (folder / "secret").stat().st_mode & 0o777 == 0o600
