"""Our servers on this machine: where they listen, and which requests they accept.

A page that a person's browser shows may send requests to 127.0.0.1, and so may every user of this machine. `Guard`
refuses requests that name another host (DNS rebinding) or come from a page of another origin, and asks for a password.
"""

import base64
import contextlib
import hmac
import secrets
import socket
from functools import cache
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selftrain.ssl_tasks.errors import ConfigError

HOST = "127.0.0.1"
ENTRANCE = "/open"  # the page that tells the browser the password; it stands behind `#`, which is sent to no server
OPEN_PATHS = ("/health", "/version", ENTRANCE)  # as MLflow's own basic-auth app has the first two
# Prefect's UI looks for the password in the origin's storage. The browser itself keeps the one that MLflow asks for. A
# cookie would be sent to every port of this host, and so to servers of other users.
PAGE = """<!doctype html><meta charset="utf-8"><title>selftrain</title><script>
const known = decodeURIComponent(location.hash.slice(1)), [user, ...rest] = known.split(":")
localStorage.setItem("prefect-password", btoa(known))
const request = new XMLHttpRequest()
request.onloadend = () => location.replace("/")
request.open("GET", "/", true, user, rest.join(":"))
request.send()
</script>"""


def listen(port: int) -> socket.socket:
    """A socket that this machine alone can reach, at this port where it is free, else at one that the system chooses.

    It listens at once, so that no other process can take the port before the server has started.
    """
    if not 0 <= port < 2**16:
        raise ConfigError(f"port {port} was asked for; expected 0 (any) to {2**16 - 1}")
    for one in (port, 0):
        with contextlib.suppress(OSError):
            return socket.create_server((HOST, one))
    raise ConfigError(f"no free port on {HOST}; port {port} was asked for")


@cache
def own_password() -> str:
    """`user:password` of this process's servers, known only to programs that it tells.

    Not kept from start to start: a process that takes the port afterwards would get it from a page that is still open.
    """
    return f"selftrain:{secrets.token_urlsafe(24)}"


def entrance(address: str) -> str:
    """The link that opens one of our servers in a browser; it holds our password."""
    return f"{address}{ENTRANCE}#{quote(own_password(), safe=':')}"


class Guard:
    """Lets in requests to our own address that no foreign page has sent; with `password`, by those who know it."""

    def __init__(self, app: ASGIApp, port: int, password: str = "") -> None:
        names = (HOST, "localhost", "[::1]")
        self.app, self.password = app, password
        self.hosts = [name if port == 80 else f"{name}:{port}" for name in names]  # browsers leave out :80
        self.origins = [f"http://{host}" for host in self.hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def unframed(message: Message) -> None:
            """No page of another origin may show ours in a frame, and have a person click in it."""
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("x-frame-options", "SAMEORIGIN")
            await send(message)

        await (self.answer(scope["path"], Headers(scope=scope)) or self.app)(scope, receive, unframed)

    def answer(self, path: str, headers: Headers) -> Response | None:
        """Our own answer, or none where the request is let in."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return self.refusal(f"the address in the request is {', '.join(hosts) or 'missing'}")
        if any(origin not in self.origins for origin in origins):
            return self.refusal(f"the request comes from a page of {', '.join(origins)}")
        if path == ENTRANCE:
            return HTMLResponse(PAGE, headers={"cache-control": "no-store"})
        if self.password and path not in OPEN_PATHS and not self.is_known(headers.get("authorization", "")):
            return PlainTextResponse(
                "open the link that `selftrain up` printed; it contains the password",
                401,
                {"www-authenticate": "Basic"},
            )
        return None

    def refusal(self, why: str) -> Response:
        """To a stranger."""
        return PlainTextResponse(f"{why}; expected {self.origins[0]}. Through a tunnel, use the same port.", 403)

    def is_known(self, authorization: str) -> bool:
        """Whether this header holds the password."""
        scheme, _, given = authorization.partition(" ")
        expected = base64.b64encode(self.password.encode())
        return scheme.lower() == "basic" and hmac.compare_digest(given.strip().encode(), expected)
