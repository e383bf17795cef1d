"""Connections that can be cut: they lead to a server, through this process."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self, cast
from urllib.parse import urlsplit


class _End(asyncio.Protocol):
    """One end of a connection; what arrives there leaves at the other one."""

    def __init__(self, transports: set[asyncio.Transport], other: _End | None = None) -> None:
        self._transports = transports
        self.other = other
        self.transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._transports.add(self.transport)
        self.transport.writelines(self._waiting)
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        assert self.other is not None
        self.other.send(data)

    def send(self, data: bytes) -> None:
        if self.transport is None:
            self._waiting.append(data)
        else:
            self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is not None:
            self._transports.discard(self.transport)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.abort()


class CuttingProxy:
    """Stands in front of a server, for small amounts of data; an asynchronous context manager."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._scheme, self._host, self._port = parts.scheme, parts.hostname, parts.port
        self._transports: set[asyncio.Transport] = set()
        self._connecting: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._connecting:
            task.cancel()
        self.cut()

    @property
    def url(self) -> str:
        """Where to connect instead of the server."""
        return f"{self._scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Break every connection."""
        for transport in list(self._transports):
            transport.abort()

    def _accept(self) -> _End:
        near = _End(self._transports)
        far = _End(self._transports, near)
        near.other = far
        loop = asyncio.get_running_loop()
        task: asyncio.Task[object] = loop.create_task(loop.create_connection(lambda: far, self._host, self._port))  # type: ignore[arg-type]  # a URL has a host
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return near
