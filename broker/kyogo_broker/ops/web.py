"""The HTTP port: liveness, readiness, metrics, on the loop of the broker, so that they say how that is.

Answers only to addresses, `localhost` and the names it was told: a page in somebody's browser can point a
name of its own at 127.0.0.1, but cannot make the browser say another Host.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kyogo_broker.model.errors import BrokerStopError
from kyogo_broker.ops.connections import BoundedProtocol
from kyogo_broker.ops.metrics import Snapshot
from kyogo_broker.ops.scrapes import Scrapes

KEEP_ALIVE_SECONDS = 5
STOP_SECONDS = 2.0
BACKLOG = 64
HOST = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]+)|\[(?P<v6>[0-9A-Fa-f:.]+)\])(?::[0-9]{1,5})?", re.ASCII)
"""Of a request: a name or an IPv4 address, or an IPv6 address in brackets; then perhaps the port."""
PAGES = "/healthz   the process lives\n/readyz    it serves\n/metrics   for Prometheus\n"


class Web:
    """Serves until it is stopped."""

    def __init__(
        self,
        *,
        snapshot: Callable[[], Snapshot],
        not_ready: Callable[[], str],
        hosts: Collection[str] = (),
    ) -> None:
        """A port that is not bound yet.

        Args:
            snapshot: figures, now; called on the loop.
            not_ready: why the broker does not serve; empty if it does.
            hosts: names that may stand in a request's Host, beside addresses and localhost.
        """
        self._scrapes = Scrapes(snapshot)
        self._not_ready = not_ready
        routes = [
            Route("/", _index),
            Route("/healthz", _healthz),
            Route("/readyz", self._readyz),
            Route("/metrics", self._metrics),
        ]
        app = Starlette(routes=routes, exception_handlers={404: _not_found})
        self._server = _Server(
            uvicorn.Config(
                HostCheck(app, hosts),
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(STOP_SECONDS),
            )
        )
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Bind and serve; returns the real port.

        Raises:
            BrokerStopError: the address cannot be had.
        """
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise BrokerStopError(
                f"cannot listen on {host}:{port} for HTTP: {error.strerror}; stop the other process, choose another "
                "address with --http, or say --http off"
            ) from None
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        return int(self._socket.getsockname()[1])

    async def stop(self) -> None:
        """Let go of the port. Idempotent."""
        if self._task is None:
            return
        self._server.should_exit = True
        await asyncio.wait({self._task}, timeout=2 * STOP_SECONDS)
        self._task = None

    async def _readyz(self, _: Request) -> Response:
        reason = self._not_ready()
        return PlainTextResponse(f"{reason}\n", 503) if reason else PlainTextResponse("ready\n")

    async def _metrics(self, request: Request) -> Response:
        body, content_type = await self._scrapes.get(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})


class HostCheck:
    """Refuses requests whose Host is a name that this port does not have."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(("localhost", *hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on."""
        if scope["type"] == "http" and not self._known(scope):
            text = "unknown Host: use the broker's address, or name it in http_hosts\n"
            await PlainTextResponse(text, 421)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        said = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        parts = HOST.fullmatch(said)
        if parts is None:
            return False
        if parts["name"] is not None and parts["name"].lower() in self._hosts:
            return True
        try:
            ipaddress.ip_address(parts["name"] if parts["name"] is not None else parts["v6"])
        except ValueError:
            return False
        return True


class _Server(uvicorn.Server):
    """Leaves the signals to the broker."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def _index(_: Request) -> Response:
    return PlainTextResponse(f"Kyogo broker\n\n{PAGES}")


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _not_found(_: Request, __: Exception) -> Response:
    return PlainTextResponse(f"There is no such page. There are:\n\n{PAGES}", 404)
