"""A sink that remembers what is asked of it, and pauses and fails where a test wants it to."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from tailrace_common_api import BulkResult, Fenced, RecordBatch, Reporting
from tailrace_impl_common import RecordDigest
from tailrace_impl_server._record_streams import RecordStreams
from tailrace_impl_server._settings import ServerSettings
from tailrace_server_api import (
    BulkIngest,
    BulkOrigin,
    Collection,
    RecordEnds,
    RecordSink,
    StagedBatch,
    Validator,
)


class RecordingSink(RecordSink):
    """Keeps everything in memory, by the rules of the interface; whoever breaks them fails."""

    def __init__(self, name: str = "things") -> None:
        self.name = name
        self.calls: list[str] = []
        """Names of the methods that were called, in order."""
        self.staged: dict[str, list[StagedBatch]] = {}
        """What is staged, by bulk."""
        self.visible: list[bytes] = []
        """What was committed."""
        self.origins: dict[str, BulkOrigin] = {}
        self.results: dict[tuple[str, str], BulkResult] = {}
        self.committed: set[str] = set()
        self.fenced: set[str] = set()
        self.swept: list[tuple[float, float | None]] = []
        self.failures: defaultdict[str, list[BaseException]] = defaultdict(list)
        """Errors that the next calls of a method raise, each once."""
        self._gates: dict[str, asyncio.Event] = {}
        self._reached: dict[str, asyncio.Event] = {}
        self.steps = 0
        """How often the loop goes round within each call of one bulk, before what it does and behind it."""
        self._running: set[str] = set()
        self.open = False

    def pause(self, method: str) -> None:
        """Let calls of ``method`` wait before they do anything, until :meth:`resume`."""
        self._gates[method] = asyncio.Event()
        self._reached[method] = asyncio.Event()

    def resume(self, method: str) -> None:
        self._gates.pop(method).set()

    async def reached(self, method: str) -> None:
        """Wait until a call of the paused ``method`` waits."""
        await self._reached[method].wait()

    @property
    def groups(self) -> list[int]:
        """Sizes of the groups that are staged of the only bulk."""
        (batches,) = self.staged.values()
        return [len(group.batch.data) for group in batches]

    async def _called(self, method: str) -> None:
        self.calls.append(method)
        if method in self._gates:
            self._reached[method].set()
            await self._gates[method].wait()
        await self._step()
        if self.failures[method]:
            raise self.failures[method].pop(0)

    async def _step(self) -> None:
        for _ in range(self.steps):
            await asyncio.sleep(0)

    @asynccontextmanager
    async def _alone(self, id: str) -> AsyncGenerator[None, None]:
        assert id not in self._running, "two calls of one bulk at a time"
        self._running.add(id)
        try:
            yield
            await self._step()
        finally:
            self._running.discard(id)

    async def start(self) -> None:
        await self._called("start")
        self.open = True

    async def close(self) -> None:
        await self._called("close")
        self.open = False

    async def begin(self, origin: BulkOrigin) -> BulkResult | None:
        await self._called("begin")
        assert self.open
        if origin.key is not None:
            if (result := self.results.get((origin.principal, origin.key))) is not None:
                return result
            self.fenced |= {
                other.id
                for other in self.origins.values()
                if (other.principal, other.key) == (origin.principal, origin.key)
            }
        self.origins[origin.id] = origin
        self.staged[origin.id] = []
        return None

    async def stage(self, id: str, batch: StagedBatch) -> None:
        async with self._alone(id):
            await self._called("stage")
            if id in self.fenced:
                raise Fenced(epoch=1)
            assert id in self.staged
            assert batch.first == sum(len(group.batch.data) for group in self.staged[id])
            assert len(batch.values) == len(batch.batch.data)
            assert len(batch.batch.keys) in (0, len(batch.batch.data))
            self.staged[id].append(batch)

    async def commit(self, id: str, *, records: int, size: int, digest: bytes) -> BulkResult:
        async with self._alone(id):
            await self._called("commit")
            assert id in self.staged
            data = [data for group in self.staged.pop(id) for data in group.batch.data]
            assert len(data) == records
            self.visible.extend(data)
            self.committed.add(id)
            result = BulkResult(
                id=id, collection=self.name, records=records, size=size, digest=digest, committed_at=1.0, repeated=True
            )
            origin = self.origins[id]
            if origin.key is not None:
                self.results[origin.principal, origin.key] = result
            return result

    async def rollback(self, id: str) -> None:
        async with self._alone(id):
            await self._called("rollback")
            assert id not in self.committed
            self.staged.pop(id, None)

    async def sweep(self, older_than: float, *, results_older_than: float | None = None) -> int:
        await self._called("sweep")
        self.swept.append((older_than, results_older_than))
        return 0


class Sender:
    """A client of one bulk that keeps to the grant."""

    def __init__(self, bulk: BulkIngest) -> None:
        self.bulk = bulk
        self.digest = RecordDigest()
        self.sent = 0

    async def send(self, *data: bytes, keys: Sequence[str | None] = ()) -> None:
        """Send records in one message, as soon as they may be sent."""
        batch = RecordBatch(data, keys)
        while (granted := self.bulk.granted) < self.sent + batch.size:
            await self.bulk.changed(granted)
        self.sent += batch.size
        self.digest.update(batch)
        self.bulk.submit(batch)

    async def watch(self) -> None:
        """Follow the grant until the bulk fails."""
        while True:
            await self.bulk.changed(self.bulk.granted)

    async def commit(self) -> BulkResult:
        return await self.bulk.commit(records=self.digest.records, digest=self.digest.digest())


class Streams:
    """Record streams over recording sinks."""

    def __init__(
        self,
        *sinks: RecordingSink,
        validator: Validator | None = None,
        ends: RecordEnds | None = None,
        **options: object,
    ) -> None:
        self.sinks = sinks or (RecordingSink(),)
        collections = {sink.name: Collection(sink=sink, validator=validator) for sink in self.sinks}
        self.streams = RecordStreams(
            ends or RecordEnds(collections=collections), ServerSettings.from_options({"group_seconds": 0.0, **options})
        )

    @property
    def sink(self) -> RecordingSink:
        return self.sinks[0]

    async def begin(
        self, name: str = "things", *, key: str | None = None, reporting: Reporting = Reporting.FIRST
    ) -> Sender:
        return Sender(await self.streams.begin_bulk(name, key=key, reporting=reporting))

    async def __aenter__(self) -> Streams:
        await self.streams.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.streams.close()


def objects(count: int, first: int = 0) -> list[bytes]:
    """Return JSON objects that differ."""
    return [b'{"n":%d}' % number for number in range(first, first + count)]
