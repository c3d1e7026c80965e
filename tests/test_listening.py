"""Our servers accept or refuse requests as documented."""

import asyncio
import base64
import socket
from dataclasses import dataclass

import pytest
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.listening import ENTRANCE, Guard, entrance, listen, own_password

PASSWORD = "selftrain:sesame"
KNOWN = "Basic " + base64.b64encode(PASSWORD.encode()).decode()
HERE = ("Host", "127.0.0.1:4200")


@dataclass
class Answer:
    """Of the guarded server, to one request."""

    status: int
    headers: Headers
    text: str


async def behind(scope: Scope, receive: Receive, send: Send) -> None:
    """What is guarded: it lets everyone in."""
    prefix = "websocket.http" if scope["type"] == "websocket" else "http"
    await send({"type": f"{prefix}.response.start", "status": 200, "headers": []})
    await send({"type": f"{prefix}.response.body", "body": b"let in"})


def ask(
    *headers: tuple[str, str], method: str = "GET", path: str = "/", kind: str = "http", password: str = ""
) -> Answer:
    """Sends a request to a guarded server on port 4200."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": f"{kind}.disconnect"}

    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": kind, "method": method, "path": path, "headers": raw}
    asyncio.run(Guard(behind, 4200, password)(scope, receive, send))
    return Answer(sent[0]["status"], Headers(raw=sent[0]["headers"]), sent[1]["body"].decode())


@pytest.mark.parametrize(
    ("host", "let_in"),
    [
        ("127.0.0.1:4200", True), ("localhost:4200", True), ("LOCALHOST:4200", True), ("[::1]:4200", True),
        ("127.0.0.1", False), ("127.0.0.1:4201", False), ("evil.example:4200", False), ("10.evil.example:4200", False),
        ("127.0.0.1:4200.evil.example", False), ("127.0.0.1.evil.example:4200", False), ("", False),
    ],
)  # fmt: skip
def test_requests_to_another_host_are_refused(host: str, let_in: bool) -> None:
    answer = ask(("Host", host))
    assert answer.status == (200 if let_in else 403)
    assert let_in or "expected http://127.0.0.1:4200" in answer.text


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    ("origin", "let_in"),
    [
        ("http://127.0.0.1:4200", True), ("http://localhost:4200", True), ("http://[::1]:4200", True),
        ("https://127.0.0.1:4200", False), ("http://127.0.0.1:4201", False), ("http://127.0.0.1", False),
        ("https://evil.example", False), ("null", False), ("", False),
    ],
)  # fmt: skip
def test_requests_of_foreign_pages_are_refused(method: str, origin: str, let_in: bool) -> None:
    answer = ask(HERE, ("Origin", origin), method=method)
    assert answer.status == (200 if let_in else 403)
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"


def test_a_second_host_is_not_a_way_around() -> None:
    assert ask().status == 403
    assert ask(HERE, ("Host", "evil.example")).status == 403
    assert ask(HERE, ("Origin", "http://127.0.0.1:4200"), ("Origin", "https://evil.example")).status == 403


def test_foreign_websockets_are_refused() -> None:
    assert ask(HERE, kind="websocket").status == 200
    assert ask(("Host", "evil.example:4200"), kind="websocket").status == 403
    assert ask(HERE, ("Origin", "https://evil.example"), kind="websocket").status == 403


@pytest.mark.parametrize(
    ("said", "let_in"),
    [
        (KNOWN, True), (KNOWN.replace("Basic", "basic"), True),
        ("", False), ("Basic", False), ("Basic x", False), ("Basic ü", False), (KNOWN[:-3], False),
        (KNOWN.replace("Basic", "Bearer"), False),
        ("Basic " + base64.b64encode(b"selftrain:wrong").decode(), False),
    ],
)  # fmt: skip
def test_a_password_is_asked_for(said: str, let_in: bool) -> None:
    answer = ask(HERE, ("Authorization", said), password=PASSWORD)
    assert answer.status == (200 if let_in else 401)
    assert let_in or answer.headers["www-authenticate"] == "Basic"
    assert ask(HERE, path="/health", password=PASSWORD).status == 200


def test_the_entrance_is_a_page_and_the_link_tells_the_server_nothing() -> None:
    link = entrance("http://127.0.0.1:4200")
    before, _, after = link.partition("#")
    assert before == f"http://127.0.0.1:4200{ENTRANCE}"
    assert after == own_password()
    answer = ask(HERE, path=ENTRANCE, password=PASSWORD)
    assert answer.headers["cache-control"] == "no-store"
    assert own_password() not in answer.text
    assert len(own_password()) > 30


def test_a_port_in_use_gives_another_one_and_one_that_cannot_be_a_sentence() -> None:
    with listen(0) as first, listen(first.getsockname()[1]) as second:
        assert first.getsockname() != second.getsockname()
        assert {one.getsockname()[0] for one in (first, second)} == {"127.0.0.1"}
        socket.create_connection(second.getsockname(), timeout=60).close()  # it listens before a server has started
    with pytest.raises(ConfigError, match="port 70000 was asked for; expected 0"):
        listen(70000)
