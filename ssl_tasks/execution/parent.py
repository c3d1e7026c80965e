"""A process that we start ends with the process that started it, whatever ends that one.

Two ways, for all of our processes. One that starts none of its own is killed by the kernel at once, even while an
import holds Python's lock (`die_with`; Linux alone). One whose children are not all ours kills its whole group, as soon
as it reads that the other end of a pipe is gone (`end_group_after`; a thread, which works anywhere).
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1
VARIABLE = "SELFTRAIN_PARENT"


def parent_of_mine() -> dict[str, str]:
    """The environment that tells a process who starts it.

    The kernel means the thread that starts it: only the main thread is sure to live as long as its process.
    """
    return {VARIABLE: str(os.getpid()) if threading.current_thread() is threading.main_thread() else ""}


def die_with_parent() -> None:
    """To be called first by a process that we started with `parent_of_mine`; does nothing in any other one."""
    if parent := os.environ.pop(VARIABLE, ""):
        die_with(int(parent))


def die_with(parent: int) -> None:
    """The kernel kills this process when the thread that started it ends; `parent` is the process of that thread."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent and not _lives(parent):  # it ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def end_group_after(wait: Callable[[], object]) -> None:
    """Kills our process group once `wait` returns, in a thread. `wait` lasts until our parent is gone."""

    def watch() -> None:
        wait()
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _lives(pid: int) -> bool:
    """Whether the process is there and has not ended; a process that its parent has not waited for stays listed."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
