"""The services of docker-compose.yml as plain processes on loopback: its commands, its settings, other addresses.

PostgreSQL and Redis are Debian's; S3 is moto's server in the place of SeaweedFS. Every process dies with this one.
"""

import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from selftrain.ssl_tasks.training.launch import free_port

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
BINARIES = Path(sys.executable).parent
PATIENCE, GRACE = 600.0, 60.0  # seconds to come up on a busy machine, and to end
CONTAINER_PORTS = {"postgres": 5432, "redis": 6379, "prefect-server": 4200, "mlflow": 5000, "s3": 8333, "worker": 8080}
PORTED = "|".join(map(str, CONTAINER_PORTS.values()))
ADDRESS = re.compile(rf"(?:[a-z][a-z0-9-]*|127\.0\.0\.1|0\.0\.0\.0):({PORTED})\b")
KEPT_AS_IT_IS = "MLFLOW_SERVER_ALLOWED_HOSTS"  # it names hosts of the compose network, which the tests send


WATCHDOG = """
import contextlib, os, signal, sys
groups = set()
for number in map(int, sys.stdin):
    groups.add(number) if number > 0 else groups.discard(-number)
for group in groups:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
"""


class Stack:
    """Servers in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
        self.ports = {number: free_port() for number in CONTAINER_PORTS.values()}
        self.variables = _variables()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.faults = folder / "s3-faults"
        # Ends what is left of all process groups when we close it, or die.
        self.watchdog = subprocess.Popen(
            [sys.executable, "-c", WATCHDOG], stdin=subprocess.PIPE, start_new_session=True
        )

    def url(self, service: str, scheme: str = "http") -> str:
        """Returns the address of a service."""
        return f"{scheme}://127.0.0.1:{self.ports[CONTAINER_PORTS[service]]}"

    def environment(self, service: str) -> dict[str, str]:
        """A service's variables as the compose file gives them; nothing of ours that Prefect or MLflow would read."""
        kept = {name: value for name, value in os.environ.items() if not re.match("PREFECT|MLFLOW|AWS|SELFTRAIN", name)}
        given = {
            name: value if name == KEPT_AS_IT_IS else self.placed(str(value))
            for name, value in COMPOSE["services"][service].get("environment", {}).items()
        }
        if "PREFECT_REDIS_MESSAGING_HOST" in given:
            given |= {
                "PREFECT_REDIS_MESSAGING_HOST": "127.0.0.1",
                "PREFECT_REDIS_MESSAGING_PORT": str(self.ports[6379]),
            }
        home = self.folder / "home" / service
        home.mkdir(parents=True, exist_ok=True)
        ours = {
            "PATH": f"{BINARIES}:{self.postgres}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.ports[5432]),
            "OMP_NUM_THREADS": "1",
        }
        if "MLFLOW_AUTH_CONFIG_PATH" in given:
            given["MLFLOW_AUTH_CONFIG_PATH"] = str(self._config("mlflow-auth"))
        return {**kept, **given, **ours}

    def worker_environment(self) -> dict[str, str]:
        """Returns the environment of flows and commands; GPU 0 is pretended, so that it is leased."""
        placed = {
            "SELFTRAIN_HOME": str(self.folder / "workspace"),
            "SELFTRAIN_LOCKS": str(self.folder / "locks"),
            "SELFTRAIN_GPU_LIMIT": "gpu",
            "CUDA_VISIBLE_DEVICES": "0",
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # 10 would make each of our short runs wait
            "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
            "PREFECT_WORKER_WEBSERVER_PORT": str(self.ports[8080]),
        }
        return {**self.environment("worker-cpu"), **placed}

    def command(self, service: str) -> list[str]:
        """A service's command as the compose file gives it."""
        given = COMPOSE["services"][service]["command"]
        words = shlex.split(self.filled(given)) if isinstance(given, str) else [self.filled(word) for word in given]
        text = [re.sub(rf"^({PORTED})$", lambda found: str(self.ports[int(found[1])]), word) for word in words]
        text = ["127.0.0.1" if word == "0.0.0.0" else word for word in text]
        configs = {one["target"]: one["source"] for one in COMPOSE["services"][service].get("configs", [])}
        return [str(self._config(configs[word])) if word in configs else word for word in text]

    def filled(self, text: str) -> str:
        """Compose's interpolation."""
        value = re.sub(r"(?<!\$)\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}", self._variable, text)
        return value.replace("$$", "$")

    def placed(self, text: str) -> str:
        """The same, with addresses of the compose network where our processes listen."""
        return ADDRESS.sub(lambda found: f"127.0.0.1:{self.ports[int(found[1])]}", self.filled(text))

    def start_all(self) -> None:
        """Everything but the worker, in the order of the compose file."""
        self.start_postgres()
        self.start("redis", "--port", str(self.ports[6379]), "--bind", "127.0.0.1", "--dir", str(self._home("redis")))
        self.wait("redis", lambda: b"PONG" in self._run("redis-cli", "-p", str(self.ports[6379]), "ping").stdout)
        self._start("s3", [sys.executable, "-m", "tests.s3_server", str(self.ports[8333]), str(self.faults)])
        self.wait_port("s3")
        self.one_shot("s3-buckets")
        self.one_shot("prefect-migrate")
        self.start("mlflow")
        self.start("prefect-server")
        self.wait_healthy("prefect-server")
        self.start("prefect-services")
        self.wait_healthy("mlflow")

    def start_postgres(self) -> None:
        """Debian's PostgreSQL; a first start makes the cluster and its databases with the compose file's script."""
        assert self.postgres is not None, "no /usr/lib/postgresql: apt-get install postgresql"
        data = self._home("postgres") / "data"
        fresh = not data.exists()
        if fresh:
            self._run(str(self.postgres / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", user="postgres")
        options = f"-D {data} -p {self.ports[5432]} -k {data} -c listen_addresses=127.0.0.1"
        self._start("postgres", [str(self.postgres / "postgres"), *options.split()], user="postgres")
        self.wait_healthy("postgres")
        if fresh:
            self._run("sh", str(self._config("databases")), environment=self.environment("postgres"))

    def start(self, service: str, *more: str) -> None:
        """Starts a service by its compose command."""
        self._start(service, [*self.command(service), *more], self.environment(service))

    def start_worker(self) -> None:
        """The CPU worker, by its compose command."""
        self._start("worker", self.command("worker-cpu"), self.worker_environment())
        self.wait("worker", lambda: self._run(*self._health("worker-cpu")).returncode == 0)

    def start_worker_elsewhere(self) -> None:
        """Another, as on another machine: of this one's locks it knows nothing."""
        apart = {"SELFTRAIN_LOCKS": str(self._home("elsewhere")), "PREFECT_WORKER_WEBSERVER_PORT": str(free_port())}
        self._start("worker-elsewhere", self.command("worker-cpu"), self.worker_environment() | apart)

    def one_shot(self, service: str) -> None:
        """Runs a service that ends."""
        self._run(*self.command(service), environment=self.environment(service))

    def selftrain(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Our command, beside the servers, as a person of the team would call it."""
        return self._call(self.folder, "selftrain", *words)

    def prefect(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Prefect's command, in the repository."""
        return self._call(ROOT, "prefect", "--no-prompt", *words)

    def _call(self, folder: Path, program: str, *words: str) -> "subprocess.CompletedProcess[str]":
        command, environment = [str(BINARIES / program), *words], self.worker_environment()
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE, cwd=folder, check=False
        )

    def stop(self, service: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends a service's process, or kills it, and waits."""
        process = self.processes.pop(service)
        process.send_signal(number)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._tell(-process.pid)

    def stop_all(self) -> None:
        """Ends everything, the last started first; whatever is left of their process groups is killed."""
        for worker in (process for name, process in self.processes.items() if name.startswith("worker")):
            for process in psutil.Process(worker.pid).children(recursive=True):
                process.kill()
        for service in reversed(list(self.processes)):
            self.stop(service, signal.SIGINT if service == "postgres" else signal.SIGTERM)
        assert self.watchdog.stdin is not None
        self.watchdog.stdin.close()
        self.watchdog.wait(10)

    def wait_healthy(self, service: str) -> None:
        """Waits until the compose file's own health check is content."""
        self.wait(service, lambda: self._run(*self._health(service)).returncode == 0)

    def wait_port(self, service: str) -> None:
        """Waits until something listens."""

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.ports[CONTAINER_PORTS[service]])) == 0

        self.wait(service, listens)

    def wait(self, service: str, ready: Callable[[], bool]) -> None:
        """Polls; says what the service's log ends with where it does not come up."""
        deadline = time.monotonic() + PATIENCE
        while not ready():
            ended = self.processes[service].poll()
            if ended is not None or time.monotonic() > deadline:
                raise AssertionError(f"{service} (code {ended}) is not ready:\n{self.log(service)[-3000:]}")
            time.sleep(0.2)

    def log(self, service: str) -> str:
        """Everything that a service has printed."""
        return (self.folder / f"{service}.log").read_text(errors="replace")

    def _start(
        self, service: str, command: list[str], environment: dict[str, str] | None = None, user: str | None = None
    ) -> None:
        with (self.folder / f"{service}.log").open("ab") as log:
            self.processes[service] = subprocess.Popen(
                command,
                env=environment or {**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=self.folder,
                **_identity(user),
            )
        self._tell(self.processes[service].pid)

    def _tell(self, number: int) -> None:
        """A process group that the watchdog must end, or with a minus one that is gone."""
        assert self.watchdog.stdin is not None
        self.watchdog.stdin.write(f"{number}\n".encode())
        self.watchdog.stdin.flush()

    def _run(
        self, *command: str, user: str | None = None, environment: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[bytes]":
        done = subprocess.run(
            command,
            env=environment or {**self.environment("redis"), "PGUSER": "postgres"},
            capture_output=True,
            cwd=self.folder,
            timeout=PATIENCE,
            check=False,
            **_identity(user),
        )
        if user is not None or environment is not None:
            assert done.returncode == 0, f"{command}: {done.stdout.decode()}{done.stderr.decode()}"
        return done

    def _health(self, service: str) -> list[str]:
        _cmd, *words = COMPOSE["services"][service]["healthcheck"]["test"]
        return [self.placed(word) for word in words]

    def _home(self, service: str) -> Path:
        home = self.folder / service
        home.mkdir(exist_ok=True)
        if os.geteuid() == 0 and service == "postgres":
            shutil.chown(home, "postgres")
        return home

    def _config(self, name: str) -> Path:
        path = self.folder / "configs" / name  # a service may be called so, and has a folder
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.placed(COMPOSE["configs"][name]["content"]))
        return path

    def _variable(self, found: "re.Match[str]") -> str:
        return self.variables.get(found[1]) or found[2] or ""


def _identity(user: str | None) -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    return {"user": user, "group": user, "extra_groups": []} if user and os.geteuid() == 0 else {}


def _variables() -> dict[str, str]:
    """A filled-in .env.example."""
    lines = [line for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line and line[0] != "#"]
    values = dict(line.split("=", 1) for line in lines)
    filled = {name: value or secrets.token_hex(16) for name, value in values.items()}
    # More slots than GPUs: the lease of a killed run, which lasts a minute, holds up no test but that of the limit.
    return {**filled, "PREFECT_AUTH": f"admin:{filled['PREFECT_AUTH']}", "TORCH_INDEX": "", "GPUS": "8"}
