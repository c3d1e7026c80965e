"""Commands of selftrain in forks of one process that has imported torch, Prefect and MLflow, once a test session.

Imports are eight of the ten seconds of CPU that a tiny run takes. A fork has what a new process has: a pid, arguments,
an environment (in /proc, too), signals, descriptors and an exit code of its own, and none of our functions has run in
it. The Python processes that a command starts (its fork server, its shipper) are forks as well, made before the command
does anything. A fork differs in two ways: modules are imported already, and the hash seed is that of the session.
Prefect reads the environment when it is imported: it is hidden until the command imports it, and then reads it again.

Tests of imports, of the first seconds of a command, of interpreter options and of passwords start real processes
(`tests.flows.tiny.command`).

`python -m tests.warm DESCRIPTOR` is that one process. It imports when the first command comes, and ends with its stdin.
"""

import _posixsubprocess
import atexit
import base64
import contextlib
import ctypes
import gc
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import pickle
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
VARIABLE = "SELFTRAIN_WARM"  # the socket of the session's server
ROOM = "SELFTRAIN_WARM_ROOM"  # its length is what a fork's environment may take in /proc
SPARES = 3  # Python children of a command that are forks: its resource tracker, its fork server, its shipper
MESSAGE = 1 << 17
PR_SET_CHILD_SUBREAPER = 36
REAP_SECONDS = 0.2
CALL = """
import base64, pickle, sys
function, arguments, named = pickle.loads(base64.b64decode(sys.argv[1]))
function(*arguments, **named)
"""
MODULES = [  # all that `selftrain.ssl_tasks.preload` imports, and what commands and the shipper import
    "selftrain.ssl_tasks.data.dataset",
    "selftrain.ssl_tasks.data.stream",
    "selftrain.ssl_tasks.evaluation.gate",
    "selftrain.ssl_tasks.evaluation.stage",
    "selftrain.ssl_tasks.features.graph",
    "selftrain.ssl_tasks.pseudo_labels.predict",
    "selftrain.ssl_tasks.pseudo_labels.select",
    "selftrain.ssl_tasks.training.stage",
    "selftrain.ssl_tasks.tracking.shipper",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking.client",
    "uvicorn",
    "prefect.server.api.server",
    "selftrain.flows.prefect.flow",
    "selftrain.flows.prefect.server",
    "selftrain.flows.cli.main",
    "selftrain.flows.actions.verbs",
]


@contextlib.contextmanager
def server(path: Path) -> Iterator[psutil.Process]:
    """The server, for as long as the session lasts; it is found by the environment."""
    given = {**os.environ, ROOM: " " * 30_000, "OMP_NUM_THREADS": "1"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(64)
        at = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(at)],
            stdin=subprocess.PIPE,
            env=given,
            cwd=ROOT,
            pass_fds=[at],
            start_new_session=True,
        )
    os.environ[VARIABLE] = str(path)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.communicate()


class Command:
    """`subprocess.Popen`'s counterpart: a command that has been started. Its output goes to files of its own."""

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        session: bool = False,
        spares: int = SPARES,
        folder: Path | None = None,
    ) -> None:
        """`words` are the interpreter's: -m selftrain …; with `session`, it leads a process group of its own."""
        self.returncode: int | None = None
        self._output, self._errors = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 - to communicate
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked: dict[str, Any] = {"words": list(words), "environment": dict(environment)}
        asked |= {"session": session, "spares": spares, "folder": str(folder or Path.cwd())}
        self._connection.connect(os.environ[VARIABLE])
        with open(os.devnull) as nothing:
            streams = [one.fileno() for one in (nothing, self._output, self._errors)]
            socket.send_fds(self._connection, [json.dumps(asked).encode()], streams)
        self.pid = int(self._connection.recv(MESSAGE))

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Its whole output and its messages, when it has ended."""
        self.wait(timeout)
        said = []
        for file in (self._output, self._errors):
            file.seek(0)
            said.append(file.read())
        return said[0], said[1]

    def poll(self) -> int | None:
        """The exit code, or None while it lives."""
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, when it has ended."""
        if (code := self._ended(timeout)) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """To the command alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def __del__(self) -> None:
        for one in (self._output, self._errors, self._connection):
            one.close()

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = int(self._connection.recv(MESSAGE))
            self._connection.close()
        return self.returncode


def call(function: Callable[..., object], *arguments: Any, spares: int = SPARES, **named: Any) -> Command:
    """Starts a function, found by its name, in a process of its own."""
    told = base64.b64encode(pickle.dumps((function, arguments, named))).decode()
    return Command(["-c", CALL, told], os.environ, spares=spares)


def serve(descriptor: int) -> None:
    """Forks a command for each connection, until stdin ends."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # so that what a killed command leaves is counted
    with socket.socket(fileno=descriptor) as listener:
        warm = False
        while sys.stdin not in (ready := select.select([listener, sys.stdin], [], [], REAP_SECONDS)[0]):
            reap()
            if not ready:
                continue
            connection, _ = listener.accept()
            if not warm:
                import_all()
                warm = True
            message, streams, _, _ = socket.recv_fds(connection, MESSAGE, 3)
            if os.fork() == 0:
                listener.close()
                supervise(connection, json.loads(message), streams)
            for one in (*streams, connection.detach()):
                os.close(one)


def reap() -> None:
    """Supervisors that have ended, and what commands have left."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def import_all() -> None:
    """What costs seconds. None of it may start a thread: a fork would lack it."""
    from selftrain.flows.environment import set_environment

    set_environment(Path(os.environ["PREFECT_HOME"]).parent)  # as every command does before it imports Prefect
    gc.disable()
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    assert threading.active_count() == 1, threading.enumerate()


def supervise(connection: socket.socket, asked: dict[str, Any], streams: list[int]) -> None:
    """Tells the client the command's pid, and how it ended."""
    if (pid := os.fork()) == 0:
        connection.close()
        become(asked, dict(enumerate(streams)))
    with contextlib.suppress(OSError):  # the client has been killed
        connection.send(str(pid).encode())
        connection.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


def become(asked: dict[str, Any], descriptors: dict[int, int]) -> None:
    """This fork becomes the process that was asked for, and ends with it. `descriptors`: number asked for → ours."""
    place(descriptors)
    for number in signal.valid_signals():
        if signal.getsignal(number) not in (signal.SIG_IGN, signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if asked["session"]:
        os.setsid()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    show_environment()
    random.seed()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the process's own, to its end
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115
    if asked["spares"]:
        Spares(asked["spares"]).install()
    Hidden("prefect").install()
    run(asked["words"])


def place(descriptors: dict[int, int]) -> None:
    """Gives descriptors the numbers that were asked for, and closes all others."""
    high = 1 + max([*descriptors, *descriptors.values()])
    moved = {asked: os.dup2(ours, high + at) for at, (asked, ours) in enumerate(descriptors.items())}
    for asked, ours in moved.items():
        os.dup2(ours, asked)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in descriptors:
            with contextlib.suppress(OSError):
                os.close(number)


def show_environment() -> None:
    """Writes our environment where /proc shows that of the process's start."""
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[47:49])
    ours = b"".join(f"{name}={value}\0".encode() for name, value in os.environ.items())
    assert len(ours) <= end - start, "the environment is too large for its place"
    ctypes.memmove(start, ours.ljust(end - start, b"\0"), end - start)


def run(words: Sequence[str]) -> None:
    """`python -m …` or `python -c …` to its end, which is this process's."""
    sys.modules["__main__"] = types.ModuleType("__main__")
    code = 0
    try:
        if words[0] == "-m":
            sys.argv = list(words[1:])
            importlib.import_module(words[1].partition(".")[0])
            if "." in words[1]:
                sys.modules.pop(words[1], None)  # it is executed once more, as __main__
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            assert words[0] == "-c", words
            sys.argv = ["-c", *words[2:]]
            exec(words[1], vars(sys.modules["__main__"]))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)


class Spares:
    """Forks of a command that has done nothing yet. Each waits to become a Python process that the command starts."""

    def __init__(self, count: int) -> None:
        self.waiting: list[tuple[int, socket.socket]] = []
        self.exec = _posixsubprocess.fork_exec
        for _ in range(count):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if (pid := os.fork()) == 0:
                ours.close()
                self.wait(theirs)
            theirs.close()
            self.waiting.append((pid, ours))

    def wait(self, told: socket.socket) -> None:
        """Until it is told what to become, or the command has ended."""
        for _, other in self.waiting:
            other.close()
        message, descriptors, _, _ = socket.recv_fds(told, MESSAGE, 64)
        if not message:
            os._exit(0)
        asked = json.loads(message)
        become(asked, dict(zip(asked["numbers"], descriptors, strict=True)))

    def install(self) -> None:
        """From now on, children that are our interpreter's are spares, while there are any."""
        self.owner = os.getpid()
        _posixsubprocess.fork_exec = subprocess._fork_exec = self.fork_exec  # type: ignore[attr-defined]

    def fork_exec(self, *asked: Any) -> int:
        """Takes `_posixsubprocess.fork_exec`'s place."""
        words = [os.fsdecode(word) for word in asked[0]]
        if words[0] != sys.executable or not self.waiting or os.getpid() != self.owner:
            return self.exec(*asked)
        while words[1] not in ("-m", "-c"):
            del words[1]
        _, _, _, kept, folder, given, stdin, _, _, stdout, _, stderr, _, failure, _, session = asked[:16]
        kept = [one for one in kept if one != failure]  # which tells of an exec that failed
        environment = os.environ if given is None else dict(os.fsdecode(one).split("=", 1) for one in given)
        streams = [at if one == -1 else one for at, one in enumerate((stdin, stdout, stderr))]
        message = {
            "words": words[1:],
            "environment": dict(environment),
            "folder": os.fsdecode(folder or os.getcwd()),
            "session": bool(session),
            "numbers": [0, 1, 2, *kept],
            "spares": SPARES if "torch.distributed.run" in words else 0,  # ranks
        }
        pid, spare = self.waiting.pop(0)
        with spare:
            socket.send_fds(spare, [json.dumps(message).encode()], [*streams, *kept])
        return pid


class Hidden(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A package that seems not to be imported until it is imported; then it reads the environment again."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.modules = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == package}

    def install(self) -> None:
        """Waits for the import."""
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Knows the package alone."""
        return importlib.machinery.ModuleSpec(name, self) if name == self.package else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """The package as it was, with all that was imported of it."""
        sys.meta_path.remove(self)
        sys.modules.update(self.modules)
        self.spec = self.modules[spec.name].__spec__
        return self.modules[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        """Reads what it had read at its import."""
        module.__spec__ = self.spec
        context = importlib.import_module("prefect.context")
        context.refresh_global_settings_context()
        logging = importlib.import_module("prefect.logging.configuration")
        logging.PROCESS_LOGGING_CONFIG.clear()
        logging.setup_logging()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
