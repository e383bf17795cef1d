"""A network that can fail: connections to a server that are stalled or cut."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlsplit

_PIECE = 64 * 1024


class TcpProxy:
    """Passes bytes on in both directions, as an asynchronous context manager."""

    def __init__(self, url: str) -> None:
        """Stand in front of the server at ``url``."""
        self._target = _address(url)
        self._scheme = urlsplit(url).scheme
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing = asyncio.Event()
        self._passing.set()

    @property
    def url(self) -> str:
        """Where to connect instead of the server."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{self._scheme}://{host}:{port}"

    def aim(self, url: str) -> None:
        """Stand in front of another server from now on; connections that are there stay where they are."""
        self._target = _address(url)

    def stall(self) -> None:
        """Let no byte through any more, in either direction, and say nothing of it."""
        self._passing.clear()

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
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._spawn(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, server_writer}
        self._spawn(self._pass_on(reader, server_writer))
        self._spawn(self._pass_on(server_reader, writer))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_PIECE):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            # One side was reset, and so is the other: what is silent instead is `stall`.
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
            raise


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port
