"""An S3 endpoint on loopback (moto's) that fails half of its requests while a file is there.

python -m tests.s3_server PORT FAULTS_FILE
"""

import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

SHARE = 0.5
BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Failing:
    """Wraps an application; the failures are drawn from a seed. Counts them in the faults file."""

    def __init__(self, application: Any, faults: Path) -> None:
        self.application, self.faults, self.random = application, faults, random.Random(7)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not self.faults.exists() or self.random.random() >= SHARE:
            return self.application(environ, start_response)
        with self.faults.open("a") as file:
            file.write(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}\n")
        # An unread body would be taken for the next request of a kept connection.
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(BUSY)))])
        return [BUSY]


if __name__ == "__main__":
    application = Failing(DomainDispatcherApplication(create_backend_app), Path(sys.argv[2]))
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=MotoRequestHandler)
