"""Opens the ports of our servers on this machine, and decides which requests they accept.

Any web page in your browser can send requests to 127.0.0.1, and so can every user of this machine. `Guard` refuses
requests that name another host (DNS rebinding) or come from a page of another origin, and asks for a password.
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
ENTRANCE = "/open"  # the page that gives the browser the password, which follows `#` and so is never sent to a server
OPEN_PATHS = ("/health", "/version", ENTRANCE)  # MLflow's own basic-auth app leaves the first two open as well
# Prefect's UI looks for the password in the origin's storage. The browser itself remembers MLflow's password. A cookie
# would be sent to every port of this host, and so to servers of other users.
PAGE = """<!doctype html><meta charset="utf-8"><title>selftrain</title><script>
const known = decodeURIComponent(location.hash.slice(1)), [user, ...rest] = known.split(":")
localStorage.setItem("prefect-password", btoa(known))
const request = new XMLHttpRequest()
request.onloadend = () => location.replace("/")
request.open("GET", "/", true, user, rest.join(":"))
request.send()
</script>"""


def listen(port: int) -> socket.socket:
    """Returns a socket that only this machine can reach, at this port if it is free, else at one that the system picks.

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
    """Returns `user:password` of this process's servers; only programs that it starts are told.

    It is new at every start. If it were not, an open page would send it to whatever process takes the port next.
    """
    return f"selftrain:{secrets.token_urlsafe(24)}"


def entrance(address: str) -> str:
    """Returns the link that opens one of our servers in a browser; it contains the password."""
    return f"{address}{ENTRANCE}#{quote(own_password(), safe=':')}"


class Guard:
    """Accepts only requests to our own address that no page of another origin has sent, with the password if set."""

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
            """Forbids pages of another origin to show ours in a frame, where they could make a person click."""
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("x-frame-options", "SAMEORIGIN")
            await send(message)

        await (self.answer(scope["path"], Headers(scope=scope)) or self.app)(scope, receive, unframed)

    def answer(self, path: str, headers: Headers) -> Response | None:
        """Returns our own response, or None if the request is accepted."""
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
        """Returns the response that refuses a request."""
        return PlainTextResponse(f"{why}; expected {self.origins[0]}. Through a tunnel, use the same port.", 403)

    def is_known(self, authorization: str) -> bool:
        """Returns whether this header holds the password."""
        scheme, _, given = authorization.partition(" ")
        expected = base64.b64encode(self.password.encode())
        return scheme.lower() == "basic" and hmac.compare_digest(given.strip().encode(), expected)
