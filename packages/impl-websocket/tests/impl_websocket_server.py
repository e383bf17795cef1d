"""A real server over memory storage, and a client that speaks no more than WebSocket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.typing import Subprotocol

from tailrace_common_api import Metadata, TailraceError, error_from_wire
from tailrace_impl_common import HeadHasher, chunk_hash
from tailrace_impl_server import create_manager
from tailrace_impl_websocket import WebSocketServer
from tailrace_server_api import RecordEnds, ResourceManager, TransportServerSettings

HEADER = 32


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    transport: WebSocketServer
    manager: ResourceManager
    ws: str
    http: str

    @property
    def endpoint(self) -> str:
        return f"{self.ws}/v1/connect"

    async def upload(self, data: bytes, *, finish: bool = True, **metadata: Any) -> str:
        """Store ``data`` as a resource; return its id."""
        async with raw(self.endpoint) as client:
            opened = await client.open_upload(1, **metadata)
            resource: str = opened["status"]["id"]
            if data:
                await client.send(frame(1, 0, data))
            while data and (await client.next(1))["type"] != "checkpoint":
                pass
            if finish:
                await client.say("finish", 1, size=len(data), head=head(data))
                await client.until("finished")
            return resource

    async def store(self, data: bytes) -> str:
        """Store ``data``, no more than a window of it, without a connection; return its id."""
        ingest = await self.manager.create(Metadata(name="x"))
        ingest.submit(data, hash=chunk_hash(data))
        await ingest.finish(size=len(data), head=bytes.fromhex(head(data)))
        return ingest.id


@asynccontextmanager
async def running_server(
    options: Mapping[str, str] | None = None,
    *,
    manager_options: Mapping[str, object] | None = None,
    records: RecordEnds | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    async with create_manager(None, manager_options or {}, records=records) as managed:
        transport = WebSocketServer()
        await transport.start(managed.manager, TransportServerSettings(options=options or {}, **settings))
        try:
            urls = transport.urls
            yield Running(transport, managed.manager, urls.get("ws") or urls["wss"], urls.get("http") or urls["https"])
        finally:
            await transport.close(0.5)


class Raw:
    """A client that sends what it is told to."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket

    async def send(self, message: str | bytes) -> None:
        await self.websocket.send(message)

    async def say(self, type: str, request: int | None = None, **fields: object) -> None:
        numbered = {} if request is None else {"request": request}
        await self.websocket.send(json.dumps({"type": type, **numbered, **fields}))

    async def receive(self) -> Any:
        """Return the next message: a decoded object, or the bytes of a binary frame."""
        message = await self.websocket.recv()
        return message if isinstance(message, bytes) else json.loads(message)

    async def next(self, request: int) -> Any:
        """Return the next control message of a request, skipping all else."""
        while True:
            message = await self.receive()
            if not isinstance(message, bytes) and message.get("request") == request:
                return message

    async def until(self, type: str) -> Any:
        """Return the next control message of a type, skipping all else; an error is none to be skipped."""
        while True:
            message = await self.receive()
            if not isinstance(message, bytes):
                if message["type"] == type:
                    return message
                assert message["type"] != "error", message

    async def error(self, request: int | None) -> TailraceError:
        """Return the error that ends a request, or the connection; what else is said of it is skipped."""
        while True:
            message = await self.receive()
            if not isinstance(message, bytes) and message["type"] == "error" and message.get("request") == request:
                return error_from_wire(message["code"], message["message"], message["details"])

    async def open_upload(self, request: int, **metadata: Any) -> Any:
        await self.say("open_upload", request, metadata={"name": "x", "content_type": "text/plain", **metadata})
        return await self.until("opened")


@asynccontextmanager
async def raw(endpoint: str) -> AsyncIterator[Raw]:
    """Connect and take the hello."""
    async with connect_websocket(endpoint, subprotocols=[Subprotocol("tailrace.v1")], proxy=None) as websocket:
        client = Raw(websocket)
        hello = await client.receive()
        assert (hello["type"], hello["protocol"]) == ("hello", 1)
        yield client


def frame(request: int, offset: int, data: bytes, previous: bytes = b"") -> bytes:
    """Build the binary frame of a chunk from the layout alone."""
    return (
        b"\x01"
        + (b"\x00" if previous else b"\x01")
        + b"\x00\x00"
        + request.to_bytes(4, "big")
        + offset.to_bytes(8, "big")
        + chunk_hash(data)
        + (previous or bytes(8))
        + data
    )


def head(data: bytes) -> str:
    hasher = HeadHasher()
    hasher.update(data)
    return hasher.head().hex()
