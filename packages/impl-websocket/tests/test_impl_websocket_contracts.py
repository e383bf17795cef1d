from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from impl_websocket_server import Running

from tailrace_client_download_api.contracts import DownloadClientContract, Producer
from tailrace_client_upload_api import UploadSession
from tailrace_client_upload_api.contracts import UploadClientContract
from tailrace_impl_common import ConnectedClient, InProcessConnection
from tailrace_impl_websocket import connect


@pytest.fixture
async def client(server: Running) -> AsyncIterator[ConnectedClient]:
    async with connect(server.ws) as connected:
        yield connected


@pytest.fixture
async def local(server: Running) -> AsyncIterator[ConnectedClient]:
    """A client that reaches the same resources without WebSocket."""
    async with ConnectedClient(InProcessConnection(server.manager)) as connected:
        yield connected


class LocalProducer(Producer):
    def __init__(self, client: ConnectedClient) -> None:
        self._client = client
        self._uploads: dict[str, UploadSession] = {}

    async def create(
        self, name: str, *, lines: bool = True, labels: dict[str, str] | None = None, context: str | None = None
    ) -> str:
        upload = self._client.upload(name, lines=lines, labels=labels, context=context)
        await upload.open()
        self._uploads[upload.id] = upload
        return upload.id

    async def append(self, reference: str, data: bytes) -> None:
        await self._uploads[reference].write(data)
        await self._uploads[reference].flush()

    async def complete(self, reference: str) -> None:
        await self._uploads.pop(reference).finish()

    async def fail(self, reference: str, reason: str) -> None:
        await self._uploads.pop(reference).abort(reason)

    async def close(self) -> None:
        for upload in self._uploads.values():
            await upload.abort()


class TestWebSocketUploads(UploadClientContract):
    @pytest.fixture
    def upload_client(self, client: ConnectedClient, local: ConnectedClient) -> ConnectedClient:
        self.local = local
        return client

    async def stored_bytes(self, upload: UploadSession) -> bytes:
        async with self.local.open(upload.id, token=upload.token) as resource:
            return await resource.read()


class TestWebSocketDownloads(DownloadClientContract):
    @pytest.fixture
    def download_client(self, client: ConnectedClient) -> ConnectedClient:
        return client

    @pytest.fixture
    async def producer(self, local: ConnectedClient) -> AsyncIterator[Producer]:
        producer = LocalProducer(local)
        yield producer
        await producer.close()
