"""Record streams in memory behind the in-process transport; they pause and fail where a test wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self, cast

from tailrace_common_api import (
    JSON,
    Argument,
    BulkResult,
    ClientSettings,
    IntegrityError,
    Limits,
    QueueFigures,
    RecordBatch,
    RecordEndNotFound,
    RecordLimits,
    Reporting,
    TailraceError,
    refused_records,
)
from tailrace_impl_common import ClientStream, ConnectedClient, InProcessConnection, RecordDigest, Signal
from tailrace_impl_common.messages import ClientMessage, Request, ServerMessage
from tailrace_server_api import (
    BulkIngest,
    Credentials,
    QueryResults,
    RecordService,
    ResourceManager,
    Telemetry,
    WorkSession,
)

KIB = 1024
LIMITS = RecordLimits(
    record_bytes=512 * KIB, bulk_records=1_000_000, bulk_bytes=1024**3, bulk_idle=60.0, window=4 * KIB * KIB
)
SERVER_LIMITS = Limits(
    chunk_size=KIB,
    upload_window=4 * KIB,
    upload_grace=60.0,
    max_download_window=64 * KIB * KIB,
    max_resource_size=KIB**4,
    max_page_size=1,
    max_heads=1,
    max_context_bytes=1 << 40,
    max_context_resources=1000,
    max_storage_bytes=1 << 50,
    max_uploads=100,
    max_contexts=100,
    max_requests=100,
    context_required=False,
)


class Gate:
    """A place at which calls wait while it is shut."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.reached = asyncio.Event()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def pass_through(self) -> None:
        self.reached.set()
        await self._open.wait()


class FakeBulk(BulkIngest):
    """A bulk in memory, by the rules of the interface; whoever breaks them fails."""

    def __init__(self, records: FakeRecords, id: str, key: str | None, result: BulkResult | None) -> None:
        self._records = records
        self._id = id
        self.key = key
        self._result = result
        self.calls: list[str] = []
        """What was asked of it, each submitted message included."""
        self.data: list[tuple[bytes, str | None]] = []
        self.messages: list[RecordBatch] = []
        self._granted = records.limits.window
        self._digest = RecordDigest()
        self._changed = Signal()
        self._failure: TailraceError | None = None
        self._commit: asyncio.Task[BulkResult] | None = None
        self.committed = False
        self.ended = asyncio.Event()
        """Set when the bulk is committed or rolled back."""
        self.arrived = Signal()

    @property
    def id(self) -> str:
        return self._id

    @property
    def content_type(self) -> str:
        return JSON

    @property
    def limits(self) -> RecordLimits:
        return self._records.limits

    @property
    def result(self) -> BulkResult | None:
        return self._result

    @property
    def granted(self) -> int:
        return self._granted

    def fail(self, error: TailraceError) -> None:
        """End the bulk as staging that has failed does."""
        self._failure = error
        self._changed.notify()

    def consume(self, count: int) -> None:
        """Grant ``count`` bytes more, as staging does."""
        self._granted += count
        self._changed.notify()

    def submit(self, batch: RecordBatch) -> None:
        self.calls.append("submit")
        assert "rollback" not in self.calls
        assert "commit" not in self.calls
        if self._failure is not None:
            raise self._failure
        self._digest.update(batch)
        self.messages.append(batch)
        self.data.extend((record.data, record.key) for record in batch.records())
        for check in self._records.checks:
            check(batch)
        if self._records.consuming:
            self.consume(batch.size)
        self.arrived.notify()

    async def wait_for(self, count: int) -> None:
        """Wait until ``count`` records have arrived."""
        while len(self.data) < count:
            await self.arrived.wait()

    async def changed(self, granted: int) -> int:
        while self._granted == granted and self._failure is None:
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure
        return self._granted

    async def commit(self, *, records: int, digest: bytes) -> BulkResult:
        self.calls.append("commit")
        assert "rollback" not in self.calls
        if (records, digest) != (len(self.data), self._digest.digest()):
            raise IntegrityError(offset=0, problem="other records arrived")
        if not records:
            raise refused_records([], 0)
        self._commit = asyncio.ensure_future(self._transaction(digest))
        self._records.committing[self.key] = self._commit
        return await asyncio.shield(self._commit)

    async def _transaction(self, digest: bytes) -> BulkResult:
        await self._records.commit_gate.pass_through()
        if self._records.commit_error is not None:
            raise self._records.commit_error
        result = BulkResult(
            id=self.id,
            collection="things",
            records=len(self.data),
            size=sum(len(data) + len((key or "").encode()) for data, key in self.data),
            digest=digest,
            committed_at=1.0,
        )
        self.committed = True
        self._records.visible.extend(self.data)
        self._records.results[self.key] = result
        self.ended.set()
        return result

    async def rollback(self) -> None:
        self.calls.append("rollback")
        await self._records.rollback_gate.pass_through()
        if self._commit is not None:
            await asyncio.wait((self._commit,))
            self._commit.exception()
        if self._records.rollback_error is not None:
            raise self._records.rollback_error
        self.ended.set()


class FakeRecords(RecordService):
    """Collection ``things``, and one source that the test makes."""

    def __init__(self) -> None:
        self.limits = LIMITS
        self.bulks: list[FakeBulk] = []
        self._begun = Signal()
        self.begin_gate, self.commit_gate, self.rollback_gate = Gate(), Gate(), Gate()
        self.begin_errors: list[TailraceError] = []
        """Errors that the next bulks or queries are refused with, each once."""
        self.commit_error: Exception | None = None
        self.rollback_error: TailraceError | None = None
        self.consuming = True
        """Whether what arrives is granted again at once."""
        self.checks: list[Callable[[RecordBatch], None]] = []
        self.visible: list[tuple[bytes, str | None]] = []
        self.results: dict[str | None, BulkResult] = {}
        self.committing: dict[str | None, asyncio.Task[BulkResult]] = {}
        self.source: Callable[[], AsyncGenerator[RecordBatch, None]] | None = None
        self.queries: list[Mapping[str, Argument]] = []
        self.asked: dict[str, object] = {}

    async def begin_bulk(
        self,
        collection: str,
        *,
        content_type: str | None = None,
        key: str | None = None,
        reporting: Reporting = Reporting.FIRST,
        priority: int = 0,
    ) -> BulkIngest:
        await self.begin_gate.pass_through()
        if self.begin_errors:
            raise self.begin_errors.pop(0)
        if collection != "things":
            raise RecordEndNotFound(kind="collection or queue", id=collection)
        self.asked = {"content_type": content_type, "key": key, "reporting": reporting, "priority": priority}
        if key in self.committing:
            # Whoever comes back waits for what becomes of the first one.
            await asyncio.wait((self.committing[key],))
        known = self.results.get(key)
        known = None if known is None else replace(known, repeated=True)
        bulk = FakeBulk(self, f"bulk-{len(self.bulks)}", key, known)
        self.bulks.append(bulk)
        self._begun.notify()
        return bulk

    async def wait_for_bulks(self, count: int) -> None:
        """Wait until ``count`` bulks have begun."""
        while len(self.bulks) < count:
            await self._begun.wait()

    async def query(self, source: str, arguments: Mapping[str, Argument]) -> QueryResults:
        self.queries.append(arguments)
        await self.begin_gate.pass_through()
        if self.begin_errors:
            raise self.begin_errors.pop(0)
        if source != "source" or self.source is None:
            raise RecordEndNotFound(kind="source", id=source)
        return QueryResults(content_type=JSON, batches=self.source())

    async def work(self, queue: str) -> WorkSession:
        raise RecordEndNotFound(kind="queue", id=queue)

    async def queue_figures(self, queue: str) -> QueueFigures:
        if queue != "queue":
            raise RecordEndNotFound(kind="queue", id=queue)
        return QueueFigures(queue=queue, ready=1, delayed=2, in_flight=3, dead=4, consumers=5, stalled=6)


class FakeManager:
    """As much of a manager, and of a service, as record streams need."""

    def __init__(self, records: FakeRecords) -> None:
        self.records = records
        self.limits = SERVER_LIMITS
        self.telemetry = Telemetry()

    def admit(self) -> None:
        return

    async def authenticate(self, credentials: Credentials) -> FakeManager:
        return self


class TappedStream(ClientStream):
    """Shows a test what is said, and lets it change that."""

    def __init__(self, stream: ClientStream, connection: TappedConnection) -> None:
        self._stream = stream
        self._connection = connection

    async def send(self, message: ClientMessage) -> None:
        self._connection.sent.append(message)
        await self._stream.send(message)

    async def receive(self) -> ServerMessage | None:
        message = await self._stream.receive()
        self._connection.received.append(message)
        change = self._connection.change
        return message if message is None or change is None else change(message)

    async def close(self) -> None:
        self._connection.closed += 1
        await self._stream.close()


class TappedConnection(InProcessConnection):
    """The in-process transport with a tap."""

    def __init__(self, manager: ResourceManager, settings: ClientSettings | None = None) -> None:
        super().__init__(manager, settings)
        self.sent: list[ClientMessage] = []
        self.received: list[ServerMessage | None] = []
        self.change: Callable[[ServerMessage], ServerMessage | None] | None = None
        self.requests: list[Request] = []
        self.failures: list[TailraceError] = []
        """Errors that the next attempts to open a conversation meet, each once."""
        self.closed = 0

    async def open(self, request: Request) -> ClientStream:
        self.requests.append(request)
        if self.failures:
            raise self.failures.pop(0)
        return TappedStream(await super().open(request), self)


class RecordBench:
    """A client of record streams in memory."""

    def __init__(self, settings: ClientSettings | None = None) -> None:
        self.records = FakeRecords()
        self.connection = TappedConnection(cast(ResourceManager, FakeManager(self.records)), settings)
        self.client = ConnectedClient(self.connection, settings)

    @property
    def bulk(self) -> FakeBulk:
        """The last bulk at the server."""
        return self.records.bulks[-1]

    async def get_to_know(self) -> None:
        """Let the client talk to the server once: only what has worked is tried again."""
        await self.client.queue_figures("queue")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.client.close()
