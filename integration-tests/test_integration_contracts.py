"""Every transport keeps the contracts of the interfaces; and a transport that nobody here knows can be added."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import record_sources
from cells import Cell, Transport
from manifest import proves
from record_databases import RecordDatabase, eventually
from servers import LocalServer

import tailrace
import tailrace.sync
from tailrace_client_download_api.contracts import (
    DownloadClientContract,
    Producer,
    QueryClientContract,
    WorkClientContract,
)
from tailrace_client_upload_api import UploadSession
from tailrace_client_upload_api.contracts import BulkClientContract, UploadClientContract
from tailrace_common_api import Record, TransportMissing
from tailrace_impl_common import ConnectedClient


@pytest.fixture
def local(server: LocalServer) -> ConnectedClient:
    """A client that reaches the same resources in another way than the one under test."""
    return server.connect(Transport.IN_PROCESS)


class LocalProducer(Producer):
    """Makes resources without the client under test."""

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
        """End what is left."""
        for upload in self._uploads.values():
            await upload.abort()


@proves("USE-3", "UPL-1", "UPL-3", "UPL-4", "UPL-5")
class TestUploads(UploadClientContract):
    @pytest.fixture
    def upload_client(self, client: ConnectedClient, local: ConnectedClient, cell: Cell) -> ConnectedClient:
        self.local = local
        return client

    async def stored_bytes(self, upload: UploadSession) -> bytes:
        async with self.local.open(upload.id, token=upload.token) as resource:
            return await resource.read()


@proves("USE-3", "DWN-1", "DWN-2", "DWN-4", "LIN-2", "RES-8", "RES-9", "CTX-1")
class TestDownloads(DownloadClientContract):
    @pytest.fixture
    def download_client(self, client: ConnectedClient, cell: Cell) -> ConnectedClient:
        return client

    @pytest.fixture
    async def producer(self, local: ConnectedClient) -> AsyncIterator[Producer]:
        producer = LocalProducer(local)
        yield producer
        await producer.close()


@proves("USE-3", "REC-0", "REC-1", "REC-2", "REC-4", "REC-5")
class TestBulks(BulkClientContract):
    @pytest.fixture
    def bulk_client(self, record_client: ConnectedClient, record_database: RecordDatabase) -> ConnectedClient:
        self.database = record_database
        return record_client

    async def visible_records(self) -> Sequence[Record]:
        rows = await self.database.rows("SELECT record, key FROM notes ORDER BY position")
        return [Record(record if isinstance(record, bytes) else record.encode(), key) for record, key in rows]


@proves("USE-3", "REC-6")
class TestQueries(QueryClientContract):
    source = "ticks"
    field = "tick"

    @pytest.fixture
    def query_client(self, record_client: ConnectedClient) -> ConnectedClient:
        for seen in (record_sources.made, record_sources.begun, record_sources.ended):
            seen.clear()
        return record_client

    async def source_has_ended(self) -> int:
        async def running() -> int:
            return len(record_sources.begun) - len(record_sources.ended)

        await eventually(running, 0)
        return len(record_sources.made)


@proves("USE-3", "REC-8", "REC-9", "REC-10")
class TestWork(WorkClientContract):
    @pytest.fixture
    def work_client(self, record_server: LocalServer, record_client: ConnectedClient) -> ConnectedClient:
        self.feeder = record_server.connect(Transport.IN_PROCESS)
        return record_client

    async def put(self, records: Sequence[bytes], *, priority: int = 0) -> None:
        async with self.feeder.bulk(self.queue, priority=priority) as bulk:
            for record in records:
                await bulk.send(record)


THIRD_PARTY = '''
"""A transport of somebody else: a server of its own, within the process."""

from tailrace_impl_common import ConnectedClient, InProcessConnection

SERVERS = {}


def connect(url, settings):
    return ConnectedClient(InProcessConnection(SERVERS[url], settings, base=url), settings)
'''


@proves("USE-3", "USE-2")
async def test_a_third_party_adds_a_transport_by_installing_it(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: Cell
) -> None:
    site = tmp_path / "site"
    metadata = site / "somebodys_transport-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "somebodys_transport.py").write_text(THIRD_PARTY)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-transport\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tailrace.client_transports]\nsomebody = somebodys_transport:connect\n")
    with pytest.raises(TransportMissing, match="somebody"):
        async with tailrace.connect("somebody://here"):
            pass
    monkeypatch.syspath_prepend(str(site))
    import somebodys_transport  # type: ignore[import-not-found]  # it has just been written

    somebodys_transport.SERVERS["somebody://here"] = server.manager
    async with tailrace.connect("somebody://here") as client:
        async with client.upload("a") as upload:
            await upload.write(b"data")
        assert upload.reference == f"somebody://here/r/{upload.id}"
        assert await client.open(upload.reference).read() == b"data"
    del sys.modules["somebodys_transport"]
