"""Defects around the end of a server in order, and around what is seen of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sabotage import executed, put, saboteur


@saboteur("CON-1", cell="grpc-filesystem")
def clients_are_not_told_that_the_server_goes_away() -> None:
    from tailrace_impl_grpc import _server

    def dismiss(self: Any) -> None:
        executed()

    put(_server._Call, "dismiss", dismiss)


@saboteur("CON-1", cell="websocket-filesystem")
def who_does_not_read_holds_up_the_server_for_ever() -> None:
    from tailrace_impl_websocket import _application

    real = _application.Endpoints.close

    async def close(self: Any, grace: float) -> None:
        executed()
        await real(self, 100_000.0)

    put(_application.Endpoints, "close", close)


@saboteur("CON-1", cell="websocket-filesystem")
def a_server_that_goes_away_seems_ready() -> None:
    from tailrace_impl_server import _manager

    def drain(self: Any) -> None:
        executed()

    put(_manager.Manager, "drain", drain)
    from tailrace_impl_websocket import _operations

    real = _operations.Operations.__init__

    def create(self: Any, context: Any, leaving: Any) -> None:
        real(self, context, lambda: False)

    put(_operations.Operations, "__init__", create)


@saboteur("CON-1", cell="websocket-memory")
def new_work_is_taken_while_the_server_drains() -> None:
    from tailrace_impl_websocket import _application

    async def close(self: Any, grace: float) -> None:
        executed()
        running: set[Any] = set()
        for connection in self._connections:
            running |= connection.go_away(None)
        if running:
            await asyncio.wait(running, timeout=grace)

    put(_application.Endpoints, "close", close)


@saboteur("UPL-8", cell="grpc-memory")
def a_server_of_grpc_does_not_look_whether_its_clients_live() -> None:
    from tailrace_impl_grpc._http2_connection import Http2Connection

    real: Callable[..., None] = vars(Http2Connection)["connection_made"]

    def connection_made(self: Any, transport: Any) -> None:
        real(self, transport)
        executed()
        self._keepalive.stop()

    put(Http2Connection, "connection_made", connection_made)
