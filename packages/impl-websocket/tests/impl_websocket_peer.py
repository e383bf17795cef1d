"""A connection to a server that follows a script, and that may break the protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tailrace_common_api import ClientSettings, Limits, Metadata, ResourceState, Status, Visibility
from tailrace_impl_common import cancel_and_wait
from tailrace_impl_websocket import WebSocketConnection
from tailrace_impl_websocket._codec import Hello, encode_from_server

ID = "0" * 32
LIMITS = Limits(
    chunk_size=1024,
    upload_window=4096,
    upload_grace=60.0,
    max_download_window=2048,
    max_resource_size=1 << 40,
    max_page_size=100,
    max_heads=100,
    max_context_bytes=1 << 40,
    max_context_resources=1000,
    max_storage_bytes=1 << 50,
    max_uploads=100,
    max_contexts=100,
    max_requests=100,
    context_required=False,
)
STATUS = Status(
    reference=f"ws://localhost/r/{ID}",
    id=ID,
    version=1,
    state=ResourceState.IN_PROGRESS,
    size=0,
    lines=None,
    head=bytes(16),
    reason=None,
    alternatives=(),
    metadata=Metadata(name="x"),
    visibility=Visibility.LIVE,
    created_at=0.0,
)


@asynccontextmanager
async def connection(url: str, **settings: Any) -> AsyncIterator[WebSocketConnection]:
    made = WebSocketConnection(url, ClientSettings(**settings))
    try:
        yield made
    finally:
        await made.close()


Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's end of a connection, as a test wants it."""

    def __init__(self, websocket: ServerConnection, silent: asyncio.Event) -> None:
        self.websocket = websocket
        self.silent = silent
        """To be set when everything was said."""

    async def hello(self) -> None:
        await self.say(None, Hello(1, LIMITS, 20.0))

    async def say(self, request: int | None, message: Any) -> None:
        await self.websocket.send(encode_from_server(request, message))

    async def hear(self) -> Any:
        message = await self.websocket.recv()
        return message if isinstance(message, bytes) else json.loads(message)


class Scripted(NamedTuple):
    """A server whose connections follow a script."""

    url: str
    silent: asyncio.Event
    heard: asyncio.Event

    async def everything_arrived(self) -> None:
        """Wait until the client has taken in all that was said."""
        await self.heard.wait()


@asynccontextmanager
async def scripted(script: Script, **options: Any) -> AsyncIterator[Scripted]:
    """Run a server whose every connection follows ``script``."""
    silent, heard = asyncio.Event(), asyncio.Event()

    async def listen(websocket: ServerConnection) -> None:
        await silent.wait()
        with suppress(ConnectionClosed):
            # A ping is answered behind all that came before it.
            await (await websocket.ping())
            heard.set()

    async def handle(websocket: ServerConnection) -> None:
        listening = asyncio.create_task(listen(websocket))
        try:
            with suppress(ConnectionClosed):
                await script(Peer(websocket, silent))
                silent.set()
                await websocket.wait_closed()
        finally:
            await cancel_and_wait(listening)

    options.setdefault("close_timeout", 0.1)
    options.setdefault("subprotocols", [Subprotocol("tailrace.v1")])
    async with serve(handle, "127.0.0.1", 0, compression=None, **options) as server:
        yield Scripted(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", silent, heard)
