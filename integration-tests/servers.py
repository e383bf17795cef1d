"""A real server in the loop of the test: a manager over a real storage, behind real transports on free ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cells import Transport

from tailrace_common_api import ClientSettings
from tailrace_impl_common import ConnectedClient, InProcessConnection
from tailrace_impl_grpc import GrpcServer
from tailrace_impl_grpc import connect as connect_grpc
from tailrace_impl_server import ManagedServer, create_manager
from tailrace_impl_websocket import WebSocketServer
from tailrace_impl_websocket import connect as connect_websocket
from tailrace_server_api import ResourceManager, TransportServer, TransportServerSettings

IN_PROCESS_BASE = "inprocess://local"


class LocalServer:
    """Started and closed by its fixture; transports listen from their first :meth:`listen` on."""

    def __init__(
        self,
        data: Path | None,
        options: Mapping[str, object],
        transport: Mapping[str, Any],
        *,
        records: Mapping[str, object] | None = None,
    ) -> None:
        """Describe a server.

        Args:
            data: Folder of the resources; ``None`` keeps them in memory.
            options: Settings of the manager.
            transport: Settings of every transport.
            records: Tables that declare ends of record streams.
        """
        self.data = data
        self._options = options
        self._transport = transport
        self._records = records
        self._managed: ManagedServer | None = None
        self._listening: dict[Transport, TransportServer] = {}
        self._clients: list[ConnectedClient] = []

    @property
    def manager(self) -> ResourceManager:
        """The manager behind the transports."""
        assert self._managed is not None
        return self._managed.manager

    async def start(self) -> None:
        """Take hold of the data."""
        self._managed = await asyncio.to_thread(create_manager, self.data, self._options, records=self._records)
        await self._managed.start()

    async def listen(self, *transports: Transport) -> None:
        """Start transports, each unless it is there already."""
        for transport in transports:
            if transport is Transport.IN_PROCESS:
                self.manager.add_base(IN_PROCESS_BASE)
            elif transport not in self._listening:
                server = GrpcServer() if transport is Transport.GRPC else WebSocketServer()
                await server.start(self.manager, TransportServerSettings(**self._transport))
                self._listening[transport] = server

    def url(self, transport: Transport, scheme: str | None = None) -> str:
        """Return the URL of a transport that listens."""
        default = "grpc" if transport is Transport.GRPC else "ws"
        return self._listening[transport].urls[scheme or default]

    def connect(self, transport: Transport, *, url: str | None = None, **settings: Any) -> ConnectedClient:
        """Return a new client, which is closed with the server.

        Args:
            transport: One that listens.
            url: Where to connect instead, such as a proxy.
            settings: Fields of ``ClientSettings``.
        """
        chosen = ClientSettings(**settings)
        if transport is Transport.IN_PROCESS:
            client = ConnectedClient(InProcessConnection(self.manager, chosen, base=IN_PROCESS_BASE), chosen)
        elif transport is Transport.GRPC:
            client = connect_grpc(url or self.url(transport), chosen)
        else:
            client = connect_websocket(url or self.url(transport), chosen)
        self._clients.append(client)
        return client

    async def stop_transports(self, grace: float = 5.0) -> None:
        """Close the transports, as the first half of a shutdown does."""
        for server in self._listening.values():
            await server.close(grace)
        self._listening.clear()

    async def close(self) -> None:
        """Close clients, transports and manager, in this order."""
        for client in self._clients:
            await client.close()
        self._clients.clear()
        await self.stop_transports()
        if self._managed is not None:
            await self._managed.close()
            self._managed = None

    async def restart(self) -> None:
        """Stop in order and start on the same data; the same transports listen again, on other ports."""
        transports = tuple(self._listening)
        await self.close()
        await self.start()
        await self.listen(Transport.IN_PROCESS, *transports)


NewServer = Callable[..., Awaitable[LocalServer]]
"""Starts a server; what the fixture of that name gives."""


@asynccontextmanager
async def connected(url: str, transport: Transport, **settings: Any) -> AsyncIterator[ConnectedClient]:
    """Have a client of a server in another process; ``settings`` are fields of ``ClientSettings``."""
    connect = connect_grpc if transport is Transport.GRPC else connect_websocket
    async with connect(url, ClientSettings(**settings)) as client:
        yield client
