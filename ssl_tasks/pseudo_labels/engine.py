"""Opens DuckDB so that it spills to disk, keeps to a memory limit, and gives the same result for any number of threads.

Queries spill to folders under `selftrain-spill-<user>-<host>` in the folder for temporary files. A folder is removed at
the end of its query or, after a kill, by the user's next query: its process keeps a file in it locked, and the kernel
frees that lock when the process ends.
"""

import contextlib
import errno
import os
import shutil
import signal
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import duckdb
import numpy as np
import pandas  # noqa: F401 - if DuckDB imported it during a query, an exception of a signal's handler would be lost
import pyarrow.dataset  # noqa: F401 - the same
from numpy.typing import NDArray

from selftrain.ssl_tasks.errors import Interrupted, OutOfMemory, SelftrainError
from selftrain.ssl_tasks.store.locks import file_lock, take

LOCK = "in-use.lock"
STARTING = "starting.lock"


@contextlib.contextmanager
def spill_folder() -> Iterator[Path]:
    """Yields an empty folder for this process; first removes the folders of dead processes."""
    with _ending_in_order():
        folder, lock = _made()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _made() -> tuple[Path, int]:
    """Makes a new folder and returns it with the descriptor of its lock."""
    root = Path(tempfile.gettempdir()) / f"selftrain-spill-{os.getuid()}-{socket.gethostname()}"
    if not _own(root):  # another user owns it: use a folder that only this process knows
        folder = Path(tempfile.mkdtemp(prefix="selftrain-spill-"))
        return folder, _locked(folder)
    with file_lock(root / STARTING):  # between making a folder and locking it, it would look abandoned
        _remove_abandoned(root)
        folder = Path(tempfile.mkdtemp(dir=root))
        return folder, _locked(folder)


def _own(root: Path) -> bool:
    """Makes the folder, and returns whether it belongs to this user and no other user can write to it."""
    with contextlib.suppress(FileExistsError):
        root.mkdir(0o700)
    found = root.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _locked(folder: Path) -> int:
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    held = take(descriptor, blocking=False)
    assert held, "no other process knows this new folder"
    return descriptor


def _remove_abandoned(root: Path) -> None:
    for folder in root.iterdir():
        if folder.is_dir() and not folder.is_symlink():
            with contextlib.suppress(BlockingIOError), file_lock(folder / LOCK, blocking=False):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Lets the process remove its folder first if SIGTERM or SIGHUP would end it at once."""

    def end(number: int, _: FrameType | None) -> None:
        raise Interrupted(f"ended by {signal.Signals(number).name}; nothing was changed")

    numbers = (signal.SIGTERM, signal.SIGHUP)
    main = threading.current_thread() is threading.main_thread()
    changed = [one for one in numbers if main and signal.getsignal(one) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def open_spilling(memory_gb: float = 2.0) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yields an in-memory database that spills to a folder of its own, which is removed at the end."""
    with spill_folder() as folder, open_duckdb(folder, memory_gb) as connection:
        yield connection


@contextlib.contextmanager
def open_duckdb(
    temporary: Path, memory_gb: float = 2.0, threads: int | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yields an in-memory database that spills to `temporary`."""
    temporary.mkdir(parents=True, exist_ok=True)
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{int(memory_gb * 1024)}MiB",
        "temp_directory": str(temporary),
        "threads": threads or os.cpu_count() or 1,
        # The input's order does not matter (we use ORDER BY or aggregates), and keeping it would cost memory.
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    with duckdb.connect(config=settings) as connection, saying_what_is_full(temporary), _interruptible(connection):
        connection.execute("SET enable_progress_bar = false")
        yield connection


@contextlib.contextmanager
def _interruptible(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Ends the running query within the block when a signal asks to stop.

    DuckDB checks for signals only between its tasks, which can take hours, and loses the exceptions of handlers. So a
    thread learns of signals from the interpreter, and interrupts the query until the handler can run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return
    hears, tells = socket.socketpair()
    tells.setblocking(False)
    ended = threading.Event()

    def pass_on() -> None:
        while (number := hears.recv(1)) and number[0] not in STOPPING:
            pass
        while number and not ended.wait(0.05):
            connection.interrupt()

    before = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield
    except (duckdb.InterruptException, RuntimeError) as error:
        if not isinstance(error, duckdb.InterruptException) and str(error) != "Query interrupted":
            raise
        raise Interrupted("interrupted while a query ran; run the same command again") from error
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        tells.close()
        thread.join()
        hears.close()


@contextlib.contextmanager
def saying_what_is_full(folder: Path) -> Iterator[None]:
    """Turns a full disk or a full memory into a message that says what to free."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        if "temp_directory" in str(error) or "temporary" in str(error):
            raise disk_full(folder) from error
        raise OutOfMemory(f"a query needed more memory than runtime.memory_gb allows; raise it ({error})") from error
    except duckdb.IOException as error:
        if "No space left" in str(error) or "File too large" in str(error) or "Disk quota" in str(error):
            raise disk_full(folder) from error
        raise
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(folder) from error
        raise


def disk_full(folder: Path) -> SelftrainError:
    """Returns the error for a full disk; it is not Transient, because a retry at once would fail as well.

    Finished shards are kept, so a later try is cheap."""
    free = shutil.disk_usage(folder).free / 2**20
    return SelftrainError(
        f"no space left to write below {folder} ({free:,.1f} MiB free, or a quota). Free some and run the same command "
        "again: what was finished is kept"
    )


def fetch(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, NDArray[Any]]:
    """Returns the columns of a small result without nulls."""
    return {name: np.asarray(column) for name, column in connection.execute(query).fetchnumpy().items()}


def fetch_number(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """Returns the one number that is the result of a query."""
    rows = connection.execute(query).fetchall()
    return int(rows[0][0])


def literal(text: str | Path) -> str:
    """Returns a text as an SQL string literal."""
    return "'" + str(text).replace("'", "''") + "'"


def read_parquet(paths: Path | Sequence[Path]) -> str:
    """Returns the SQL table of one or several Parquet files, in the given order.

    Hive partitioning is switched off: DuckDB would read a folder named `label=1` as a column of the files in it.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    return f"read_parquet([{', '.join(map(literal, files))}], hive_partitioning = false)"


def copy_to_parquet(connection: duckdb.DuckDBPyConnection, query: str, path: Path, group_rows: int = 122_880) -> None:
    """Streams a query's rows to a file, which gets its name when it is complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with saying_what_is_full(path.parent):
            connection.execute(
                f"COPY ({query}) TO {literal(temporary)} "
                f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {group_rows})"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
