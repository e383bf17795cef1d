"""The client's side: a connection, and what is asked over it."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import suppress

import grpc

from tailrace_common_api import ClientSettings, ConnectionLost, DeadlineExceeded, ProtocolError
from tailrace_impl_common import (
    ClientStream,
    ConnectedClient,
    Connection,
    cancel_and_wait,
    is_loopback,
    outgoing_trace,
    warn_of_clear_text,
)
from tailrace_impl_common.messages import (
    WATCH_REQUESTS,
    Request,
    UnaryAnswer,
    UnaryRequest,
)
from tailrace_impl_grpc._address import parse_url
from tailrace_impl_grpc._client_streams import GrpcClientStream, error_of_status
from tailrace_impl_grpc._codec import Method, method_of
from tailrace_impl_grpc._error_table import ERROR_KEY
from tailrace_impl_grpc._http2_client_connection import Http2ClientConnection
from tailrace_impl_grpc._http2_headers import Metadata
from tailrace_impl_grpc._http2_stream import CallEnded
from tailrace_impl_grpc._library_client import LibraryConnection
from tailrace_impl_grpc._options import (
    BEST_CHUNK_SIZE,
    MAX_RECEIVED_MESSAGE,
    CallProtocols,
    GrpcClientOptions,
    client_context,
)


def connect(url: str, settings: ClientSettings | None = None) -> ConnectedClient:
    """Return a client of the server at ``url``; it connects when it is first used.

    Args:
        url: ``grpc://HOST[:PORT]``, or ``grpcs://`` for TLS.
        settings: Settings of the connection.

    Raises:
        ConfigurationError: The URL or an option is not one that gRPC can have.
    """
    settings = settings or ClientSettings()
    server = parse_url(url)
    if settings.token is not None and not server.secure:
        warn_of_clear_text(server.host)
    options = GrpcClientOptions.parse(settings.options)
    # Proxies are the library's.
    own = options.protocol is CallProtocols.BUFFERED and not (
        options.proxy and not is_loopback(server.host) and _has_proxy()
    )
    new_connection = GrpcConnection if own else LibraryConnection
    return ConnectedClient(new_connection(url, settings, options), settings)


def _has_proxy() -> bool:
    """Return whether the environment has a proxy that gRPC would use."""
    return any(os.environ.get(name) for name in ("grpc_proxy", "https_proxy", "http_proxy"))


class GrpcConnection(Connection):
    """A connection to a server, made when it is first used and made anew when it is lost."""

    def __init__(self, url: str, settings: ClientSettings, options: GrpcClientOptions | None = None) -> None:
        """Prepare a connection to the server at ``url``; nothing is connected yet.

        Raises:
            ConfigurationError: The URL or an option is not one that gRPC can have.
        """
        self._server = parse_url(url)
        self._address = str(self._server)
        self._settings = settings
        self._options = options or GrpcClientOptions.parse(settings.options)
        self._context: ssl.SSLContext | None = None
        self._connection: Http2ClientConnection | None = None
        # That one, and those that go away and still have calls.
        self._connections: set[Http2ClientConnection] = set()
        self._connecting: asyncio.Task[Http2ClientConnection] | None = None
        self._streams: set[GrpcClientStream] = set()
        self._closed = False

    @property
    def best_chunk_size(self) -> int:
        return BEST_CHUNK_SIZE

    @property
    def address(self) -> str:
        """Whom this connects to, as ``HOST:PORT``."""
        return self._address

    async def open(self, request: Request) -> ClientStream:
        method = method_of(request)
        first = method.encode_request(request)
        connection = await self._ready()
        try:
            call = await connection.begin(method.path, self._metadata())
        except CallEnded:
            if self._closed:
                raise self._closed_here() from None
            raise self._lost("the server is going away") from None
        if self._closed:
            call.cancel()
            raise self._closed_here()
        stream = GrpcClientStream(method, call, self._address, self._streams)
        try:
            if isinstance(request, WATCH_REQUESTS):
                await stream.send_only(first)
            else:
                await stream.send_encoded(first)
        except BaseException:
            await stream.close()
            raise
        return stream

    async def call(self, request: UnaryRequest) -> UnaryAnswer:
        method = method_of(request)
        data = method.encode_request(request)
        seconds = self._settings.answer_timeout
        try:
            async with asyncio.timeout(seconds):
                answer = await self._answer(method, data, seconds)
        except DeadlineExceeded:
            # Connecting has a time of its own.
            raise
        except TimeoutError:
            raise DeadlineExceeded(what=f"the answer to {method.name}", seconds=seconds) from None
        message = method.decode_response(answer)
        if not isinstance(message, UnaryAnswer):
            raise ProtocolError(f"{type(message).__name__} does not answer {type(request).__name__}")
        return message

    async def _answer(self, method: Method, data: bytes, seconds: float) -> bytes:
        connection = await self._ready()
        try:
            call = await connection.begin(method.path, self._metadata(), timeout=seconds)
        except CallEnded:
            if self._closed:
                raise self._closed_here() from None
            raise self._lost("the server is going away") from None
        try:
            with suppress(CallEnded):
                # Its status says why.
                await call.write_last(data)
            answer = await call.read()
            extra = None if answer is None else await call.read()
            status = await call.status()
        finally:
            call.cancel()
        if self._closed:
            raise self._closed_here()
        if status.code is grpc.StatusCode.DEADLINE_EXCEEDED and not any(key == ERROR_KEY for key, _ in status.metadata):
            raise TimeoutError
        if status.code is not grpc.StatusCode.OK:
            raise error_of_status(status, self._address)
        if answer is None or extra is not None:
            raise ProtocolError(f"not one message answers {method.name}")
        return bytes(answer)

    async def close(self) -> None:
        self._closed = True
        connecting = self._connecting
        if connecting is not None:
            connecting.cancel()
        closing = [asyncio.ensure_future(stream.close()) for stream in self._streams]
        try:
            if closing:
                await asyncio.wait(closing)
        finally:
            # Also when this is cancelled: who closes has nobody behind who would.
            try:
                await cancel_and_wait(*closing, *(() if connecting is None else (connecting,)))
            finally:
                made = () if connecting is None or not _has_result(connecting) else (connecting.result(),)
                for connection in {*self._connections, *made}:
                    connection.close()
                    await asyncio.shield(connection.gone)

    def _metadata(self) -> Metadata:
        """Return what a call says beside its messages."""
        token = self._settings.token
        authorization = () if token is None else (("authorization", f"Bearer {token}"),)
        return (*authorization, *outgoing_trace().items())

    async def _ready(self) -> Http2ClientConnection:
        """Return a connection that takes calls.

        Raises:
            ConnectionLost: The server cannot be reached.
            DeadlineExceeded: It took too long.
        """
        while True:
            if self._closed:
                raise self._closed_here()
            if self._connection is not None and self._connection.usable:
                return self._connection
            # A failure for which nobody waited is nobody's.
            if self._connecting is None or (self._connecting.done() and not _has_result(self._connecting)):
                self._connecting = asyncio.create_task(self._connect(), name="tailrace grpc connection")
                # Whoever waited may have been cancelled.
                self._connecting.add_done_callback(_has_result)
            connecting = self._connecting
            # Several may wait; who is cancelled leaves it to the others.
            await asyncio.wait((connecting,))
            first = self._connecting is connecting
            if first:
                self._connecting = None
            if connecting.cancelled():
                raise self._closed_here()
            made = connecting.result()
            if first:
                self._connection = made
                self._connections = {each for each in self._connections if not each.gone.done()} | {made}

    async def _connect(self) -> Http2ClientConnection:
        seconds = self._settings.connect_timeout
        loop = asyncio.get_running_loop()
        if self._server.secure and self._context is None:
            self._context = await asyncio.to_thread(client_context, self._settings)
        connection = Http2ClientConnection(
            loop,
            authority=self._address,
            secure=self._server.secure,
            max_message=MAX_RECEIVED_MESSAGE,
            compress=self._options.compression,
            keepalive_interval=self._settings.keepalive_interval,
            keepalive_timeout=self._settings.keepalive_timeout,
        )
        try:
            async with asyncio.timeout(seconds):
                await loop.create_connection(
                    lambda: connection, self._server.host, self._server.port, ssl=self._context
                )
                await connection.ready
        except TimeoutError:
            _drop(connection)
            raise DeadlineExceeded(what=f"the connection to {self._address}", seconds=seconds) from None
        except OSError as error:
            raise ConnectionLost(f"{self._address} cannot be reached: {_problem_of(error)}") from None
        except BaseException:
            _drop(connection)
            raise
        if not connection.usable:
            _drop(connection)
            raise self._lost("it does not speak HTTP/2, or goes away")
        return connection

    def _lost(self, problem: str) -> ConnectionLost:
        return ConnectionLost(f"the connection to {self._address} failed: {problem}")

    def _closed_here(self) -> ConnectionLost:
        return ConnectionLost(f"the connection to {self._address} was closed by this client")


def _has_result(task: asyncio.Task[Http2ClientConnection]) -> bool:
    """Return whether a task that is done has succeeded."""
    return not task.cancelled() and task.exception() is None


def _problem_of(error: OSError) -> str:
    """Return what the system says; event loops have texts of their own."""
    if error.errno is not None and error.errno > 0 and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


def _drop(connection: Http2ClientConnection) -> None:
    transport: asyncio.Transport | None = connection.transport
    if transport is not None:
        transport.abort()
