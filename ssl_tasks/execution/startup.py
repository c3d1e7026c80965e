"""Controls the start and end of our processes: their module path, their parent, and garbage collection.

A process that we start ends with its parent, however the parent ends. There are two ways. A process without children is
killed by the kernel at once, even while an import holds Python's lock (`die_with`; Linux only). A process with children
that are not all ours kills its whole group when the other end of a pipe is closed (`end_group_after`; a thread, which
works anywhere).
"""

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).parents[3]  # of a checkout, or site-packages
SAFE_PATH, PARENT = "PYTHONSAFEPATH", "SELFTRAIN_PARENT"  # variables of the environment
PR_SET_PDEATHSIG = 1
_own_process = False


def safe_path() -> dict[str, str]:
    """Returns an environment in which a Python that we start does not import from the current folder.

    A `selftrain.py` in that folder may be the user's own. PYTHONPATH still counts. In a checkout the folder is added,
    because it may be the only place of our packages.
    """
    return {} if ROOT.samefile(".") else {SAFE_PATH: "1"}


def folder_hides_us() -> bool:
    """Returns whether the current folder has a module or a package of our name (a mere folder hides nothing)."""
    found = PathFinder.find_spec("selftrain", [os.getcwd()])
    return not ROOT.samefile(".") and found is not None and found.origin is not None


@contextlib.contextmanager
def in_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables within the block; processes that start in it inherit them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def parent_of_mine() -> dict[str, str]:
    """Returns an environment that tells a new process which process starts it.

    For the kernel, the parent is a thread. Only the main thread is certain to live as long as its process.
    """
    return {PARENT: str(os.getpid()) if threading.current_thread() is threading.main_thread() else ""}


def die_with_parent() -> None:
    """Ties this process to its parent; call it first. It acts only in processes started with `parent_of_mine`."""
    if parent := os.environ.pop(PARENT, ""):
        die_with(int(parent))


def die_with(parent: int) -> None:
    """Lets the kernel kill this process when the thread that started it ends, a thread of the process `parent`."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent and not _lives(parent):  # it ended before this call
        os.kill(os.getpid(), signal.SIGKILL)


def end_group_after(wait: Callable[[], object]) -> None:
    """Kills our process group once `wait` returns, in a thread. `wait` lasts until our parent is gone."""

    def watch() -> None:
        wait()
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _lives(pid: int) -> bool:
    """Returns whether the process exists and has not ended; it stays listed until its parent has waited for it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Suspends garbage collection within the block.

    Imports make hundreds of thousands of objects and no garbage; without collections they take a fifth less time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if _own_process:
                gc.freeze()
            gc.enable()


def own_process() -> None:
    """Marks this process as the command line's own: collections skip its imports, and it ends without freeing them.

    Do not call it in a notebook: garbage there would be kept, and reported when it ends.
    """
    global _own_process
    _own_process = True


def is_own_process() -> bool:
    """Returns whether this process is the command line's own."""
    return _own_process
