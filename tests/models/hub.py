"""A folder as the Hugging Face hub serves it, over HTTP on loopback: files, gates, and what is not there."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "gated"  # in a repository's name: its licence has not been accepted


class Hub(BaseHTTPRequestHandler):
    """`/<organisation>/<name>/resolve/<revision>/<file>` is the file `<organisation>/<name>/<file>` of the folder."""

    folder: Path

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        """The file, or the error that the hub would name."""
        repository, found, rest = self.path.lstrip("/").partition("/resolve/")
        file = self.folder / repository / rest.partition("/")[2]
        if GATED in repository:
            return self.refuse(403, "GatedRepo")
        if not found or not (self.folder / repository).is_dir():
            return self.refuse(401, "RepoNotFound")
        if rest.partition("/")[0] not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if not file.is_file():
            return self.refuse(404, "EntryNotFound")
        data = file.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        """An error with the hub's own name for it."""
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on the terminal."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address at which a folder is served."""
    handler = type("Handler", (Hub,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def publish(folder: Path, repository: str, weights: bytes, **config: object) -> None:
    """A repository with weights, and a config.json as timm writes it where anything is told."""
    place = folder / repository
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(weights)
    if config:
        (place / "config.json").write_text(json.dumps(config))
