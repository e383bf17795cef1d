"""A network that can fail: connections to a server that are stalled or cut, or that change what they carry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

from message_faults import CUTS, DELAY, Direction, Framing, Harm, MessageFault

_PIECE = 64 * 1024


class TcpProxy:
    """Passes bytes on in both directions, as an asynchronous context manager."""

    def __init__(self, url: str) -> None:
        """Stand in front of the server at ``url``."""
        self._target = _address(url)
        self._scheme = urlsplit(url).scheme
        self._server: asyncio.Server | None = None
        self._left = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing = {direction: asyncio.Event() for direction in Direction}
        self.release()
        self.fault: MessageFault | None = None
        """What happens to one message of the connections that begin from now on."""
        self.cut_after: dict[Direction, int] = {}
        """Bytes after which the next connection breaks, by direction; used up when it has."""
        self.passed = dict.fromkeys(Direction, 0)
        """Bytes that have arrived from the other side, over all connections, by direction."""

    @property
    def url(self) -> str:
        """Where to connect instead of the server."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{self._scheme}://{host}:{port}"

    def aim(self, url: str) -> None:
        """Stand in front of another server from now on; connections that are there stay where they are."""
        self._target = _address(url)

    def stall(self, *directions: Direction) -> None:
        """Let no byte through any more, in these directions, or in both if none is named, and say nothing of it."""
        for direction in directions or Direction:
            self._passing[direction].clear()

    def release(self) -> None:
        """Let bytes through again."""
        for passing in self._passing.values():
            passing.set()

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def __aenter__(self) -> TcpProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._left = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.cut()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._left:
            # The loop had taken it before the server was closed, and tells of it only now.
            writer.transport.abort()
            return
        self._writers.add(writer)
        self._spawn(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(server_writer)
        to_server, to_client = Direction.TO_SERVER, Direction.TO_CLIENT
        self._spawn(self._pass_on(self._carried(reader, to_server, writer), server_writer, to_server))
        self._spawn(self._pass_on(self._carried(server_reader, to_client, server_writer), writer, to_client))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self, carried: AsyncGenerator[bytes, None], writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        try:
            async with aclosing(carried):
                async for data in carried:
                    await self._passing[direction].wait()
                    writer.write(data)
                    await writer.drain()
            writer.write_eof()
        except OSError:
            # One side was reset, and so is the other: what is silent instead is `stall`.
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
            raise

    async def _carried(
        self, reader: asyncio.StreamReader, direction: Direction, origin: asyncio.StreamWriter
    ) -> AsyncGenerator[bytes, None]:
        """Yield what comes out at the other end."""
        fault = self.fault
        if fault is not None and fault.direction is direction:
            async with aclosing(self._harmed(reader, fault, origin)) as pieces:
                async for data in pieces:
                    yield data
            return
        passed = 0
        while data := await reader.read(_PIECE):
            self.passed[direction] += len(data)
            limit = self.cut_after.get(direction)
            if limit is not None and passed + len(data) >= limit:
                del self.cut_after[direction]
                yield data[: limit - passed]
                origin.transport.abort()
                raise ConnectionResetError
            passed += len(data)
            yield data

    async def _harmed(
        self, reader: asyncio.StreamReader, fault: MessageFault, origin: asyncio.StreamWriter
    ) -> AsyncGenerator[bytes, None]:
        framing = Framing(self._scheme, fault.direction)
        number = 0
        while data := await reader.read(_PIECE):
            if fault.done:
                # It has happened to this connection, or to another one.
                yield framing.rest() + data
                continue
            for message, header in framing.feed(data):
                number += 1
                if fault.done or number != fault.number:
                    yield message
                    continue
                fault.done = True
                if fault.harm is Harm.DELAY:
                    await asyncio.sleep(DELAY)
                yield fault.spoil(message, header)
                if fault.harm in CUTS:
                    origin.transport.abort()
                    raise ConnectionResetError
                if fault.harm is Harm.STALL:
                    await asyncio.Event().wait()
            if fault.done:
                yield framing.rest()
        yield framing.rest()


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port
