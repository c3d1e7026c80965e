"""Attacks by a web page of another origin, and by requests with foreign headers."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from tests.browser import Browser

# Gives the first deployment a shell command to begin with, and asks for a run.
ATTACK = """
const [api, command, done] = arguments, said = []
const ask = async (method, path, body) => {
  const headers = {"Content-Type": "application/json"}
  let answer
  do answer = await fetch(api + path, {method, headers, body: JSON.stringify(body)})
  while (answer.status === 503)  // SQLite is busy
  said.push(answer.status)
  return answer
}
const attack = async () => {
  const [found] = await (await ask("POST", "/deployments/filter", {})).json()
  const steps = [{"prefect.deployments.steps.run_shell_script": {script: command}}]
  await ask("PATCH", `/deployments/${found.id}`, {pull_steps: steps})
  await ask("POST", `/deployments/${found.id}/create_flow_run`, {})
}
attack().catch(error => said.push(String(error))).then(() => done(said))
"""
FILTER = "/api/flow_runs/filter"


class Page(BaseHTTPRequestHandler):
    """An empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def another_origin() -> Iterator[str]:
    """The address of a page that is not ours."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def attack(browser: Browser, page: str, api: str, command: str) -> list[Any]:
    """Sends the requests of the page, and returns the answers."""
    browser.open_address(page)
    browser.driver.set_script_timeout(60)
    answers: list[Any] = browser.driver.execute_async_script(ATTACK, api, command)
    return answers


def raw_requests(address: str, password: str) -> dict[str, int]:
    """The status of each kind of request to Prefect, all but the first with the right password."""
    user, _, secret = password.partition(":")
    port = urlsplit(address).port
    headers = {
        "foreign host": {"Host": f"rebound.example:{port}"},
        "other port": {"Host": "127.0.0.1:1"},
        "foreign page": {"Origin": "https://evil.example"},
        "page of another port": {"Origin": "http://127.0.0.1:1"},
        "page of a file": {"Origin": "null"},
        "simple post": {"Origin": "https://evil.example", "Content-Type": "text/plain"},
        "ours": {},
        "own page": {"Origin": address},
    }
    with httpx.Client(base_url=address, timeout=60) as client:
        found = {"no password": client.post(FILTER, json={}).status_code}
        client.auth = httpx.BasicAuth(user, secret)
        for name, given in headers.items():
            found[name] = client.post(
                FILTER, content="{}", headers={"Content-Type": "application/json", **given}
            ).status_code
        preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "PATCH"}
        found["preflight"] = client.options(FILTER, headers=preflight).status_code
        found["websocket"] = client.get(
            "/api/events/out",
            headers={
                "Origin": "https://evil.example", "Upgrade": "websocket", "Connection": "Upgrade",
                "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
                "Sec-WebSocket-Protocol": "prefect",
            },
        ).status_code  # fmt: skip
    return found


LET_IN = {
    "no password": 401, "foreign host": 403, "other port": 403, "foreign page": 403, "page of another port": 403,
    "page of a file": 403, "simple post": 403, "ours": 200, "own page": 200, "preflight": 403, "websocket": 403,
}  # fmt: skip


def listeners(process: psutil.Process) -> list[tuple[str, int]]:
    """Returns the addresses on which a process and its descendants listen."""
    found = []
    for one in (process, *process.children(recursive=True)):
        found += [tuple(at.laddr) for at in one.net_connections("inet") if at.status == psutil.CONN_LISTEN]
    return sorted(set(found))


def is_deaf(address: tuple[str, int]) -> bool:
    """Whether it hangs up on who does not know the token: Prefect's runner has such a channel to its flow runs."""
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(b"GET /api/health HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            return connection.recv(1) == b""
        return True


def tellers(process: psutil.Process, workspace: Path, password: str) -> list[str]:
    """Command lines and files of the workspace in which the password stands."""
    secret = password.rpartition(":")[2]
    assert len(secret) > 20
    lines = [" ".join(one.cmdline()) for one in (process, *process.children(recursive=True))]
    files = [path for path in workspace.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    return [line for line in lines if secret in line] + [str(path) for path in files]
