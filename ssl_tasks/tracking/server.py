"""MLflow's server as our child, in one process: it dies with us, whatever kills us.

The first line of standard input says what to serve, as JSON: the database's `uri`, the `folder` of the artifacts, the
number of the `socket` that we inherit, and the `password` to ask for. No other user sees it, as `ps` shows arguments.
When standard input ends, so does the server: the kernel closes that pipe.
"""

import json
import os
import socket
import sys

from selftrain.ssl_tasks.execution.listening import Guard
from selftrain.ssl_tasks.execution.startup import end_group_after


def main() -> None:
    """In a process group of its own, started by `selftrain up`."""
    if not (line := _line()):
        return  # the process that started us is gone already
    asked = json.loads(line)
    end_group_after(_standard_input_ends)
    import uvicorn  # before MLflow, which is protected where it finds a server
    from mlflow.server import constants

    os.environ.update(  # as `mlflow server` sets them for the server that it starts
        {
            constants.BACKEND_STORE_URI_ENV_VAR: asked["uri"],
            constants.REGISTRY_STORE_URI_ENV_VAR: asked["uri"],
            constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: asked["folder"],
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        }
    )
    from mlflow.server.fastapi_app import app

    listener = socket.socket(fileno=asked["socket"])
    guard = Guard(app, listener.getsockname()[1], asked["password"])
    uvicorn.Server(uvicorn.Config(guard, log_level="warning", proxy_headers=False)).run(sockets=[listener])


def _line() -> str:
    """The first line, byte by byte: the thread reads what follows."""
    line = b""
    while (more := os.read(sys.stdin.fileno(), 1)) and more != b"\n":
        line += more
    return line.decode()


def _standard_input_ends() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass


if __name__ == "__main__":
    main()
