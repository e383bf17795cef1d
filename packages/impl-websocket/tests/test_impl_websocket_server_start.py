"""A start of the server that does not get to its end."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tailrace_impl_common import listen
from tailrace_impl_server import create_manager
from tailrace_impl_websocket import WebSocketServer, _server
from tailrace_server_api import TransportServerSettings

HOST = "127.0.0.2"
"""An address at which nobody else listens: the port is free when it has been let go of."""


async def _is_free(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


@pytest.mark.parametrize("moment", ["begun", "listening"])
async def test_a_start_that_is_cancelled_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    starting: list[asyncio.Task[None]] = []
    listeners: list[socket.socket] = []
    ports: list[int] = []
    real_startup = _server._Server.startup

    async def listen_and_tell(host: str, port: int) -> socket.socket:
        listeners.append(await listen(host, port))
        ports.append(listeners[0].getsockname()[1])
        return listeners[0]

    async def startup(server: _server._Server, sockets: list[socket.socket] | None = None) -> None:
        if moment == "begun":
            starting[0].cancel()
            # Who starts it hears of that before it goes on.
            await asyncio.sleep(0)
        await real_startup(server, sockets)
        if moment == "listening":
            starting[0].cancel()

    monkeypatch.setattr(_server, "listen", listen_and_tell)
    monkeypatch.setattr(_server._Server, "startup", startup)
    async with create_manager(None, {}) as managed:
        server = WebSocketServer()
        starting.append(asyncio.ensure_future(server.start(managed.manager, TransportServerSettings(host=HOST))))
        with pytest.raises(asyncio.CancelledError):
            await starting[0]
        # That no task is left is looked at behind every test.
        assert listeners[0].fileno() == -1
        assert await _is_free(ports[0])
        assert not server.urls
        await server.close(1.0)
