"""The server's side: the services, with health and reflection, over whatever takes their calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from tailrace_common_api import (
    ConfigurationError,
    ConnectionLost,
    DeadlineExceeded,
    GoingAway,
    InternalError,
    ProtocolError,
    TailraceError,
    url_scheme,
)
from tailrace_impl_common import (
    Endpoint,
    answer_request,
    cancel_and_wait,
    counted_refusals,
    serve_conversation,
    where_waits,
)
from tailrace_impl_common.messages import UNARY_REQUESTS, WATCH_REQUESTS, ClientMessage, Request
from tailrace_impl_grpc._call_abort import abort_call
from tailrace_impl_grpc._call_metadata import credentials_of, trace_of
from tailrace_impl_grpc._call_server import CallServer
from tailrace_impl_grpc._codec import ANSWERS, CONVERSATIONS, DOWNLOADS, SERVICES, WATCHES, Method
from tailrace_impl_grpc._health import HealthServicer
from tailrace_impl_grpc._http2_server import Http2Server
from tailrace_impl_grpc._library_server import LibraryServer
from tailrace_impl_grpc._options import BEST_CHUNK_SIZE, CallProtocols, GrpcServerOptions
from tailrace_impl_grpc._peers import Peers
from tailrace_impl_grpc._reflection import ReflectionServicer
from tailrace_impl_grpc._server_streams import Context, GrpcServerStream, server_stream, shared_message
from tailrace_server_api import ResourceManager, ResourceService, TransportServer, TransportServerSettings

logger = logging.getLogger(__name__)

_RETRY_AFTER = 0.1
"""What a client is told to wait when the server goes away, in seconds."""
_REQUEST_TIMEOUT = 10.0
"""Time from the beginning of a call to its first message, in seconds."""
_LAST_CHANCE = 5.0
"""Time behind the grace for calls that were told to end, until the server goes without them, in seconds."""
_LAST_STATUSES = 1.0
"""Longest time for the statuses of calls that have ended to leave, in seconds."""

ResultT = TypeVar("ResultT")


class GrpcServer(TransportServer):
    """Serves a manager's resources over gRPC."""

    def __init__(self) -> None:
        """Prepare a server; :meth:`start` makes it listen."""
        self._server: CallServer | None = None
        self._health = HealthServicer(self._is_ready, ("", *SERVICES))
        self._running: dict[asyncio.Task[object], _Call] = {}
        self._manager: ResourceManager | None = None
        self._endpoint: Endpoint | None = None
        self._peers: Peers | None = None
        self._urls: Mapping[str, str] = {}
        self._closing: asyncio.Future[None] | None = None
        self._certificates = False
        self._shared = shared_message(whole=True)

    async def start(self, manager: ResourceManager, settings: TransportServerSettings) -> None:
        options = GrpcServerOptions.parse(settings.options)
        if settings.public_base is not None:
            _check_base(settings.public_base)
        buffered = options.protocol is CallProtocols.BUFFERED
        new_server = Http2Server if buffered else LibraryServer
        self._shared = shared_message(whole=not buffered)
        # Calls beyond the limit are refused with an error; clients hold back only where they are far beyond it.
        server = new_server(settings, options, max_calls=2 * manager.limits.max_requests)
        self._add_services(server)
        scheme = "grpc" if settings.certificate_file is None else "grpcs"
        try:
            port = await server.bind()
            url = f"{scheme}://{_address(settings.host, port)}"
            self._endpoint = Endpoint(
                transport="grpc",
                base=(settings.public_base or url).rstrip("/"),
                chunk_size=min(settings.chunk_size or BEST_CHUNK_SIZE, manager.limits.chunk_size),
                telemetry=manager.telemetry,
            )
            self._peers = Peers(
                max_connections=settings.max_connections,
                max_requests=manager.limits.max_requests,
                telemetry=manager.telemetry,
            )
            self._certificates = settings.client_ca_file is not None
            self._manager = manager
            manager.add_base(self._endpoint.base)
            await server.start()
        except BaseException:
            self._closing = asyncio.ensure_future(server.stop(None))
            await asyncio.shield(self._closing)
            raise
        self._server = server
        self._urls = {scheme: url}

    @property
    def urls(self) -> Mapping[str, str]:
        return self._urls

    async def close(self, grace: float) -> None:
        if self._server is None:
            return
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(self._server, grace))
        await asyncio.shield(self._closing)

    async def _close(self, server: CallServer, grace: float) -> None:
        self._health.dismiss()
        for call in self._running.values():
            call.dismiss()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        if self._running:
            # Who comes meanwhile is still told why it is refused.
            await asyncio.wait(set(self._running), timeout=grace)
        # Statuses may be on their way. Calls that ask about the server itself, which only clients end, are cut.
        rest = min(max(0.0, deadline - loop.time()), _LAST_STATUSES)
        stopping = asyncio.ensure_future(server.stop(rest))
        await asyncio.wait((stopping, *self._running), timeout=max(0.0, deadline - loop.time()) + _LAST_CHANCE)
        await self._end_leftovers()
        # It waits for the calls, too.
        await asyncio.wait((stopping,), timeout=_LAST_CHANCE)
        await cancel_and_wait(stopping)

    async def _end_leftovers(self) -> None:
        """Cancel calls that have outlived the grace, and go on without those that do not end even then."""
        if not self._running:
            return
        logger.warning("calls did not end within the grace: %s", self._running_methods())
        for task in self._running:
            task.cancel()
        await asyncio.wait(set(self._running), timeout=_LAST_CHANCE)
        if self._running:
            logger.warning("calls do not end, and are left behind: %s", self._running_methods())

    def _running_methods(self) -> str:
        """Return the methods of calls that run and where each waits, for the log."""
        return ", ".join(f"{call.method} ({where_waits(task)})" for task, call in self._running.items())

    def _is_ready(self) -> bool:
        return self._manager is not None and self._manager.ready

    def _add_services(self, server: CallServer) -> None:
        handlers: dict[str, dict[str, grpc.RpcMethodHandler[bytes, bytes]]] = {service: {} for service in SERVICES}
        for method in CONVERSATIONS:
            # What is unary here goes out together with the status. What is written before that goes as in a stream, and
            # clients cannot tell the difference.
            unary = method in DOWNLOADS
            new_handler = grpc.stream_unary_rpc_method_handler if unary else grpc.stream_stream_rpc_method_handler
            handlers[method.service][method.name] = new_handler(self._conversing(method))
        for method in WATCHES:
            handlers[method.service][method.name] = grpc.unary_stream_rpc_method_handler(self._watching(method))
        for method in ANSWERS:
            handlers[method.service][method.name] = grpc.unary_unary_rpc_method_handler(self._answering(method))
        for service, methods in handlers.items():
            server.add_registered_method_handlers(service, methods)
        # Generated code does with it what it would do with a server of the library.
        generated: Any = server
        health_pb2_grpc.add_HealthServicer_to_server(self._health, generated)
        services = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflecting = ReflectionServicer(services, self._reflect)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflecting, generated)  # type: ignore[no-untyped-call]  # it has no types

    # gRPC asks whether a handler is a coroutine function, so each of these returns one.

    def _conversing(self, method: Method) -> Callable[[object, Context], Awaitable[bytes]]:
        expected = CONVERSATIONS[method]

        async def handle(_messages: object, context: Context) -> bytes:
            # All in one frame, and no function of its own: there are thousands of followers that are in it.
            call = self._begin(method.name, ends_when_closing=True)
            try:
                try:
                    stream = server_stream(method, context, self._shared)
                    service = await self._let_in(call, context)
                    request = await _first_message(stream)
                    if request is None:
                        raise ProtocolError(f"{method.name} was called without a request")
                    if not isinstance(request, expected):
                        raise ProtocolError(f"{type(request).__name__} does not begin {method.name}")
                    await self._serve(request, stream, service, context)
                    if stream.abandoned:
                        raise ConnectionLost("the client left the upload open")
                    return stream.last
                except BaseException as exc:
                    error = _error_to_tell(call, exc)
                    if error is None:
                        raise
                await self._tell(call, context, error)
                # The client is gone.
                return b""
            finally:
                # Its traceback holds this frame, and that the call: its connection would stay open until the collector
                # comes by.
                error = None
                self._end(call, context)

        return handle

    def _watching(self, method: Method) -> Callable[[bytes, Context], Awaitable[None]]:
        async def handle(data: bytes, context: Context) -> None:
            async def serve(service: ResourceService) -> None:
                request = method.decode_request(data)
                assert isinstance(request, WATCH_REQUESTS)
                stream = GrpcServerStream(method, context, self._shared)
                await self._serve(request, stream, service, context)

            await self._run(method.name, context, serve, ends_when_closing=True)

        return handle

    def _answering(self, method: Method) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(data: bytes, context: Context) -> bytes:
            async def answer(service: ResourceService) -> bytes:
                request = method.decode_request(data)
                assert isinstance(request, UNARY_REQUESTS)
                assert self._endpoint is not None
                answer = await answer_request(
                    request, service=service, endpoint=self._endpoint, trace=trace_of(context)
                )
                return method.encode_response(answer)

            # Empty only when the client is gone, and then nobody gets it.
            return await self._run(method.name, context, answer, ends_when_closing=False) or b""

        return handle

    def _serve(
        self, request: Request, stream: GrpcServerStream, service: ResourceService, context: Context
    ) -> Awaitable[None]:
        assert self._endpoint is not None
        return serve_conversation(request, stream, service=service, endpoint=self._endpoint, trace=trace_of(context))

    async def _authenticate(self, context: Context) -> ResourceService:
        assert self._manager is not None
        credentials = credentials_of(context, certificates=self._certificates)
        assert self._endpoint is not None
        with counted_refusals(self._endpoint, credentials.peer):
            return await self._manager.authenticate(credentials)

    def _admit(self, peer: str) -> Peers:
        """Let a call in, or refuse it; who is let in is to be counted out again."""
        assert self._manager is not None
        assert self._endpoint is not None
        assert self._peers is not None
        with counted_refusals(self._endpoint, peer):
            if self._closing is not None:
                raise GoingAway(retry_after=_RETRY_AFTER)
            self._manager.admit()
            self._peers.begin(peer)
        return self._peers

    async def _reflect(self, context: Context, answer: Callable[[], Awaitable[None]]) -> None:
        await self._run("ServerReflectionInfo", context, lambda _: answer(), ends_when_closing=True)

    async def _run(
        self,
        method: str,
        context: Context,
        work: Callable[[ResourceService], Awaitable[ResultT]],
        *,
        ends_when_closing: bool,
    ) -> ResultT | None:
        """Do the work of one call for whoever makes it, and tell the client what went wrong, if something did."""
        call = self._begin(method, ends_when_closing=ends_when_closing)
        try:
            try:
                # Before any message of the call is looked at.
                return await work(await self._let_in(call, context))
            except BaseException as exc:
                error = _error_to_tell(call, exc)
                if error is None:
                    raise
            await self._tell(call, context, error)
            return None
        finally:
            # As in a conversation.
            error = None
            self._end(call, context)

    def _begin(self, method: str, *, ends_when_closing: bool) -> _Call:
        """Take note of a call, which the current task serves."""
        task = asyncio.current_task()
        assert task is not None
        call = self._running[task] = _Call(task, method, ends_when_closing)
        return call

    def _end(self, call: _Call, context: Context) -> None:
        del self._running[call.task]
        # What its handler returns is still to be sent: whoever does not take it holds it, and counts for as long.
        context.add_done_callback(call.leave)  # type: ignore[arg-type]  # the stubs mean any callable, and name a class

    async def _let_in(self, call: _Call, context: Context) -> ResourceService:
        """Return what the caller may use; it is counted until :meth:`_Call.leave`.

        Raises:
            TailraceError: The caller is refused.
        """
        peer = context.peer()
        call.enter(self._admit(peer), peer)
        return await self._authenticate(context)

    async def _tell(self, call: _Call, context: Context, error: TailraceError) -> None:
        """End a call with an error; returns when the client is gone already."""
        call.leave()
        call.over = True
        try:
            await abort_call(context, error)
        finally:
            del error


def _error_to_tell(call: _Call, exc: BaseException) -> TailraceError | None:
    """Return what the client is told of that which has ended its call; ``None`` for what is not for it."""
    if isinstance(exc, TailraceError):
        return exc
    if isinstance(exc, asyncio.CancelledError):
        if not call.dismissed:
            # The client is gone.
            return None
        call.task.uncancel()
        return GoingAway(retry_after=_RETRY_AFTER)
    if not isinstance(exc, Exception):
        return None
    logger.error("a call failed", exc_info=exc)
    return InternalError("the call failed; the server's log says why")


async def _first_message(stream: GrpcServerStream) -> ClientMessage | None:
    """Return the request of a call; ``None`` if there is none.

    Raises:
        DeadlineExceeded: It does not come: such a call holds a place, and nothing else would ever end it.
    """
    try:
        async with asyncio.timeout(_REQUEST_TIMEOUT):
            return await stream.receive()
    except TimeoutError:
        raise DeadlineExceeded(what="the request", seconds=_REQUEST_TIMEOUT) from None


class _Call:
    """A call that is being served."""

    __slots__ = ("_ends_when_closing", "_peer", "_peers", "dismissed", "method", "over", "task")

    def __init__(self, task: asyncio.Task[object], method: str, ends_when_closing: bool) -> None:
        self.method = method
        """Name of its method."""
        self.task = task
        """What serves it."""
        self._ends_when_closing = ends_when_closing
        self._peers: Peers | None = None
        self._peer = ""
        self.dismissed = False
        """Whether the server, and not the client, has ended it."""
        self.over = False
        """Whether only its status is still to be sent."""

    def enter(self, peers: Peers, peer: str) -> None:
        """Note that it was counted among the calls of ``peer``."""
        self._peers, self._peer = peers, peer

    def leave(self, _context: Context | None = None) -> None:
        """Count it no more, if it was counted."""
        peers, self._peers = self._peers, None
        if peers is not None:
            peers.end(self._peer)

    def dismiss(self) -> None:
        """End it because the server goes away, unless it ends soon by itself."""
        if self._ends_when_closing and not self.over and not self.dismissed:
            self.dismissed = True
            self.task.cancel()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_base(base: str) -> None:
    """Refuse a public base that no client of this transport can connect to."""
    try:
        known = url_scheme(base) in ("grpc", "grpcs")
    except ConfigurationError:
        known = False
    if not known or urlsplit(base).path not in ("", "/") or urlsplit(base).query or urlsplit(base).fragment:
        raise ConfigurationError(field="public_base", problem=f"{base!a} is not grpc://HOST[:PORT]")
