"""Runs MLflow's server as a child process that ends when its parent ends, however the parent dies.

The first line of standard input is JSON: the database's `uri`, the `folder` of the artifacts, the number of the
inherited `socket`, and the `password`. It is not an argument, because `ps` shows arguments to other users. The kernel
closes standard input when the parent dies, and the server then ends.
"""

import json
import os
import socket
import sys

from selftrain.ssl_tasks.execution.listening import Guard
from selftrain.ssl_tasks.execution.startup import end_group_after


def main() -> None:
    """Runs the server, in its own process group; `selftrain up` starts it."""
    if not (line := _line()):
        return  # the parent has died already
    asked = json.loads(line)
    end_group_after(_standard_input_ends)
    import uvicorn  # before MLflow, which adds its protection only if it finds a server
    from mlflow.server import constants

    os.environ.update(  # the variables that `mlflow server` sets
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
    """Reads the first line byte by byte, because a thread reads the rest."""
    line = b""
    while (more := os.read(sys.stdin.fileno(), 1)) and more != b"\n":
        line += more
    return line.decode()


def _standard_input_ends() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass


if __name__ == "__main__":
    main()
