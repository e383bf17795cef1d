"""The server as an ASGI application, to be run by this package or mounted into somebody's own."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from tailrace_common_api import MEBIBYTE, GoingAway, NotFound, TailraceError, Unsupported
from tailrace_impl_common import Endpoint, counted_refusals, where_waits
from tailrace_impl_websocket._codec import PATH, SUBPROTOCOL
from tailrace_impl_websocket._credentials import credentials_of, offered_token, says_anonymous
from tailrace_impl_websocket._http_bodies import Bodies
from tailrace_impl_websocket._http_door import HttpDoor
from tailrace_impl_websocket._http_query import QueryDoor
from tailrace_impl_websocket._operations import Operations
from tailrace_impl_websocket._origins import OriginGuard, Origins, parse_origins
from tailrace_impl_websocket._places import Place, Places
from tailrace_impl_websocket._refusal import deny, send_error
from tailrace_impl_websocket._server_streams import ServerConnection, ServerContext, offers_subprotocol
from tailrace_server_api import Credentials, ResourceManager

logger = logging.getLogger(__name__)

BEST_CHUNK_SIZE = MEBIBYTE
"""Size of chunks that suits WebSocket and HTTP best, in bytes."""
_GOING_AWAY_RETRY = 0.1
"""What clients are told of a server that goes away, in seconds: most come back at once."""
_LAST_WAIT = 5.0
"""Time for connections that were told to end, until the server goes without them, in seconds."""


class Endpoints:
    """The WebSocket endpoint and the HTTP doors of one server, with all that runs in them."""

    def __init__(self, context: ServerContext) -> None:
        """Serve the manager of ``context``."""
        self._context = context
        self._places = Places(context.max_connections)
        self._bodies = Bodies()
        self._door = HttpDoor(context, self._places, self._bodies)
        self._query_door = QueryDoor(context, self._places, self._bodies)
        self._connections: dict[ServerConnection, asyncio.Future[None]] = {}
        # Whose callers are still being looked at, by what ends that.
        self._entering: dict[asyncio.Timeout, asyncio.Task[Any]] = {}
        self._going_away: GoingAway | None = None

    def application(self, prefix: str) -> Starlette:
        """Return the application that serves both below ``prefix``."""
        application = Starlette(
            routes=[
                WebSocketRoute(prefix + PATH, _WebSocketEndpoint(self)),
                Route(prefix + "/r/{id}", self._door),
                Route(prefix + "/query/{name}", self._query_door),
                *Operations(self._context, lambda: self._going_away is not None).routes(prefix),
            ],
            middleware=[Middleware(OriginGuard, self._context.origins, self._context.endpoint)],
            exception_handlers={404: _not_found},
        )
        application.router.redirect_slashes = False
        return application

    async def connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket to its end."""
        await receive()
        endpoint, credentials = self._context.endpoint, credentials_of(scope)
        with self._places.place() as place:
            try:
                with counted_refusals(endpoint, credentials.peer):
                    self._admit(scope, place)
                    if credentials.token is not None or (
                        (token := offered_token(scope)) is None and says_anonymous(scope)
                    ):
                        await self._authenticate(credentials)
                        token = None
            except TailraceError as error:
                # Who is refused may come again with something else.
                place.leave()
                await deny(scope, send, error)
                return
            connection = ServerConnection(self._context, credentials, scope, receive, send, offered=token)
            ended = asyncio.get_running_loop().create_future()
            self._connections[connection] = ended
            try:
                with endpoint.telemetry.connection(endpoint.transport):
                    await connection.run()
            finally:
                del self._connections[connection]
                ended.set_result(None)

    def _admit(self, scope: Scope, place: Place) -> None:
        if self._going_away is not None:
            raise self._going_away
        place.take()
        self._context.manager.admit()
        if not offers_subprotocol(scope):
            raise Unsupported(f"the WebSocket subprotocol {SUBPROTOCOL} is not offered")

    async def _authenticate(self, credentials: Credentials) -> None:
        """Look at a caller.

        Raises:
            GoingAway: The server shuts down meanwhile.
            TailraceError: The caller is refused.
        """
        task, patience = asyncio.current_task(), asyncio.timeout(None)
        assert task is not None
        try:
            async with patience:
                self._entering[patience] = task
                try:
                    await self._context.manager.authenticate(credentials)
                finally:
                    del self._entering[patience]
        except TimeoutError:
            # An authenticator may have one of its own.
            if not patience.expired():
                raise
        if self._going_away is not None:
            raise self._going_away

    async def close(self, grace: float) -> None:
        """Refuse what is new, tell streaming conversations, and end what is left after ``grace`` seconds."""
        self._going_away = GoingAway(retry_after=_GOING_AWAY_RETRY)
        entering = tuple(self._entering.values())
        for patience in self._entering:
            patience.reschedule(asyncio.get_running_loop().time())
        running: set[asyncio.Task[None]] = self._bodies.go_away(self._going_away)
        for connection in self._connections:
            running |= connection.go_away(self._going_away)
        if running:
            await asyncio.wait(running, timeout=grace)
        for task in self._bodies.go_away(self._going_away):
            task.cancel()
        ended: tuple[asyncio.Future[Any], ...] = (*self._connections.values(), *entering)
        await asyncio.gather(*(connection.end(self._going_away) for connection in tuple(self._connections)))
        if ended:
            _, left = await asyncio.wait(ended, timeout=_LAST_WAIT)
            if left:
                tasks = [task for connection in self._connections for task in connection.running]
                tasks += self._entering.values()
                logger.warning("%d connections do not end: %s", len(left), ", ".join(map(where_waits, tasks)))


class _WebSocketEndpoint:
    """An object and not a function, because Starlette takes only that for an ASGI application."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoints.connect(scope, receive, send)


def create_application(
    manager: ResourceManager,
    *,
    base: str,
    prefix: str = "",
    chunk_size: int = BEST_CHUNK_SIZE,
    keepalive_interval: float = 20.0,
    max_connections: int = 10_000,
    origins: str = "",
) -> Starlette:
    """Return an ASGI application that serves the resources of ``manager``, to be mounted into another one.

    It needs no lifespan events. The server that runs it should accept WebSocket messages of 4 MiB, send protocol
    pings, and leave per-message deflate off where the network is fast.

    Args:
        manager: Resources to serve; must be started, and outlive the application.
        base: Public base URL, such as ``wss://example.org/tailrace``: where clients reach the application. The manager
            is told of it.
        prefix: Path below which everything is served within the application; empty when the application that mounts
            this one strips it.
        chunk_size: Bytes of a full chunk on the way to readers that do not say what suits them.
        keepalive_interval: Seconds after which clients that cannot send protocol pings are asked to send their own.
        max_connections: Most WebSockets and plain HTTP requests at the same time, together.
        origins: Origins of the pages that may use the server, beside those of ``base`` and of the server itself;
            ``*`` for all.

    Raises:
        ConfigurationError: ``origins`` is no list of origins.
    """
    listed = parse_origins(origins)
    manager.add_base(base)
    context = ServerContext(
        manager=manager,
        endpoint=Endpoint(
            transport="websocket",
            base=base,
            chunk_size=min(chunk_size, manager.limits.chunk_size),
            telemetry=manager.telemetry,
        ),
        keepalive_interval=keepalive_interval,
        max_connections=max_connections,
        origins=Origins(listed, base=base),
    )
    return Endpoints(context).application(prefix)


async def _not_found(request: Request, exception: Exception) -> Response:
    return _ErrorResponse(NotFound(id=request.url.path))


class _ErrorResponse(Response):
    """An error in the form in which the HTTP door gives it."""

    def __init__(self, error: TailraceError) -> None:
        super().__init__()
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_error(send, self._error)
