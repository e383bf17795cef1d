"""Work over WebSocket keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tailrace_client_download_api.contracts import WorkClientContract
from tailrace_impl_common import ConnectedClient
from tailrace_impl_server import create_manager
from tailrace_impl_websocket import WebSocketServer, connect
from tailrace_server_api import TransportServerSettings


class TestWebSocketWork(WorkClientContract):
    @pytest.fixture
    async def work_client(self, tmp_path: Path) -> AsyncIterator[ConnectedClient]:
        async with create_manager(tmp_path, {}, records={"queues": {self.queue: {}}}) as managed:
            server = WebSocketServer()
            await server.start(managed.manager, TransportServerSettings())
            try:
                async with connect(server.urls["ws"]) as client:
                    self.client = client
                    yield client
            finally:
                await server.close(5.0)

    async def put(self, records: Sequence[bytes], *, priority: int = 0) -> None:
        async with self.client.bulk(self.queue, priority=priority) as bulk:
            for record in records:
                await bulk.send(record)
