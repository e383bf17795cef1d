"""Takes calls of gRPC from connections of asyncio, and hands them to methods as ``grpc.aio`` would."""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
import ssl
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from tailrace_impl_common import listen
from tailrace_impl_grpc._call_server import CallServer, Handlers
from tailrace_impl_grpc._http2_call import Http2Call
from tailrace_impl_grpc._http2_connection import CallHost, Http2Connection
from tailrace_impl_grpc._http2_peer import ReceiveArea
from tailrace_impl_grpc._options import MAX_RECEIVED_MESSAGE, GrpcServerOptions, server_context
from tailrace_server_api import TransportServerSettings

logger = logging.getLogger(__name__)

_REQUEST_TIMEOUT = 10.0
"""Time for the request of a call that has one, in seconds."""
_LAST_WORDS = 3.0
"""Longest time for connections to be gone that were closed, in seconds: longer than they linger."""


class Http2Server(CallServer, CallHost):
    """Serves methods of gRPC over connections of its own. Belongs to one event loop."""

    def __init__(self, settings: TransportServerSettings, options: GrpcServerOptions, *, max_calls: int) -> None:
        """Prepare.

        Args:
            settings: Where to listen, and how.
            options: Of the transport.
            max_calls: Most calls of a connection.
        """
        self.max_calls = max_calls
        self.max_message = MAX_RECEIVED_MESSAGE
        self.compress = options.compression
        self.keepalive_interval = settings.keepalive_interval
        self.keepalive_timeout = settings.keepalive_timeout
        self._settings = settings
        self._handlers: dict[str, Any] = {}
        self._area = ReceiveArea()
        self._connections: set[Http2Connection] = set()
        self._all_gone = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._context: ssl.SSLContext | None = None
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._starting: asyncio.Future[None] | None = None
        self._stopped = False

    def add_registered_method_handlers(self, service: str, handlers: Handlers) -> None:
        for name, handler in handlers.items():
            self._handlers[f"/{service}/{name}"] = handler

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Do nothing: generated code registers the same methods by their names."""

    # Connections

    async def bind(self) -> int:
        settings = self._settings
        self._context = await asyncio.to_thread(server_context, settings)
        self._listener = await listen(settings.host, settings.port)
        port: int = self._listener.getsockname()[1]
        return port

    async def start(self) -> None:
        # A loop that is interrupted there goes on to listen, to a socket that is closed behind its back then.
        self._starting = asyncio.ensure_future(self._start())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Http2Connection(self, self._area, loop), sock=self._listener, ssl=self._context
        )

    async def stop(self, grace: float | None) -> None:
        self._stopped = True
        if self._starting is not None:
            await asyncio.wait((self._starting,))
        if self._server is not None:
            self._server.close()
        elif self._listener is not None:
            self._listener.close()
        for connection in self._connections:
            connection.go_away()
        if self._tasks and grace:
            await asyncio.wait(set(self._tasks), timeout=grace)
        for connection in tuple(self._connections):
            connection.close()
        if self._connections:
            self._all_gone.clear()
            try:
                async with asyncio.timeout(_LAST_WORDS):
                    await self._all_gone.wait()
            except TimeoutError:
                logger.warning("%d connections are left behind", len(self._connections))
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def connected(self, connection: Http2Connection) -> None:
        self._connections.add(connection)
        if self._stopped:
            # TLS was still being agreed upon.
            connection.close()

    def disconnected(self, connection: Http2Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._all_gone.set()

    # Calls

    def serve(self, call: Http2Call) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        call.begin(task)

    async def _serve(self, call: Http2Call) -> None:
        """Let the method serve a call, and end it with a status."""
        try:
            handler = self._handlers.get(call.headers.path)
            if handler is None:
                await call.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
            await _handle(call, handler)
            await call.wait_ended()
        except grpc.aio.AbortError:
            # It has its status.
            pass
        except asyncio.CancelledError:
            if not call.over:
                # Neither the client nor the time: whoever has cancelled the task wants it ended.
                call.end_with(grpc.StatusCode.CANCELLED, "the call was cancelled")
                raise
        except Exception as error:
            if call.over:
                logger.debug("a call was over before its method: %r", error)
                return
            logger.exception("a method failed")
            call.end_with(grpc.StatusCode.UNKNOWN, "the method failed; the server's log says why")


async def _handle(call: Http2Call, handler: Any) -> None:
    """Call the method of a handler as its kind wants it."""
    call.serve_with(handler)
    request: object
    if handler.request_streaming:
        request = call.messages()
    else:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT):
                request = await call.read()
        except TimeoutError:
            await call.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no request within {_REQUEST_TIMEOUT:g} s")
        if request is grpc.aio.EOF:
            await call.abort(grpc.StatusCode.INTERNAL, "the call has no request")
    method: Any
    if handler.response_streaming:
        method = handler.stream_stream if handler.request_streaming else handler.unary_stream
        if inspect.isasyncgenfunction(method):
            async with aclosing(method(request, call)) as answers:
                async for message in answers:
                    await call.write(message)
        else:
            await method(request, call)
        call.finish()
        return
    method = handler.stream_unary if handler.request_streaming else handler.unary_unary
    answer = await method(request, call)
    if not call.over:
        await call.answer(answer)
