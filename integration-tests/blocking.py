"""A server in a loop of another thread, and a client of it for blocking code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from anyio.from_thread import BlockingPortal, start_blocking_portal
from cells import Cell, StorageKind, Transport
from servers import LocalServer

import tailrace.sync
from tailrace_client_download_api import sync as download_api
from tailrace_client_upload_api import sync as upload_api
from tailrace_impl_common import ConnectedClient


class BlockingClient(Protocol):
    """What blocking code uses of a client, whatever the transport."""

    def upload(self, name: str, *, lines: bool = False) -> upload_api.UploadSession: ...

    def open(self, reference: str, *, token: str | None = None) -> download_api.RemoteResource: ...

    def close(self) -> None: ...


class PortalClient(upload_api.UploadClient, download_api.DownloadClient, download_api.ResourceClient):
    """The blocking façades over a client that lives in the loop of a portal."""

    def __init__(self, portal: BlockingPortal, client: ConnectedClient) -> None:
        upload_api.UploadClient.__init__(self, portal, client)
        download_api.DownloadClient.__init__(self, portal, client)
        download_api.ResourceClient.__init__(self, portal, client)

    def close(self) -> None:
        """Do nothing: the client is closed with its server."""


class BlockingServer:
    """A server that runs beside blocking code."""

    def __init__(self, portal: BlockingPortal, server: LocalServer, cell: Cell) -> None:
        self.portal = portal
        self.server = server
        self.cell = cell

    @property
    def url(self) -> str:
        """URL of the cell's transport; there is none in process."""
        return self.server.url(self.cell.transport)

    def connect(self) -> BlockingClient:
        """Return a client; it is to be closed."""
        if self.cell.transport is Transport.IN_PROCESS:
            return PortalClient(self.portal, self.portal.call(self.server.connect, Transport.IN_PROCESS))
        return tailrace.sync.connect(self.url)


@contextmanager
def running_server(cell: Cell, folder: Path, options: Mapping[str, object]) -> Iterator[BlockingServer]:
    """Run a server of a cell while the block runs."""
    data = folder / "data" if cell.storage is StorageKind.FILESYSTEM else None
    with start_blocking_portal("asyncio") as portal:
        server = LocalServer(data, options, {})
        portal.call(server.start)
        try:
            portal.call(server.listen, cell.transport)
            yield BlockingServer(portal, server, cell)
        finally:
            portal.call(server.close)
