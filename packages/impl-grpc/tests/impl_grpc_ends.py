"""Ends of record streams that tests hold in their hands."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping

from tailrace_common_api import JSON, Argument, BulkResult, RecordBatch
from tailrace_server_api import BulkOrigin, Collection, RecordEnds, RecordSink, RecordSource, Source, StagedBatch


class MemorySink(RecordSink):
    """Keeps bulks in memory, and tells what has become of them."""

    def __init__(self, name: str = "things") -> None:
        self.name = name
        self.origins: list[BulkOrigin] = []
        self.staged: dict[str, list[RecordBatch]] = {}
        self.groups: list[int] = []
        """Sizes of the groups that were staged."""
        self.visible: list[tuple[bytes, str | None]] = []
        """Data and keys of what was committed."""
        self.results: dict[tuple[str, str], BulkResult] = {}
        self.commits = 0
        self.rolled_back = asyncio.Event()
        self.stored = asyncio.Event()
        """Set when something was staged."""
        self.staging = asyncio.Event()
        """Set when something is to be staged."""
        self.may_stage = asyncio.Event()
        self.may_stage.set()
        self.committing = asyncio.Event()
        """Set when a commit has begun."""
        self.may_commit = asyncio.Event()
        self.may_commit.set()
        self.committed = asyncio.Event()

    async def start(self) -> None:
        return

    async def close(self) -> None:
        return

    async def begin(self, origin: BulkOrigin) -> BulkResult | None:
        self.origins.append(origin)
        if origin.key is not None and (origin.principal, origin.key) in self.results:
            return self.results[origin.principal, origin.key]
        self.staged[origin.id] = []
        return None

    async def stage(self, id: str, batch: StagedBatch) -> None:
        self.staging.set()
        await self.may_stage.wait()
        self.staged[id].append(batch.batch)
        self.groups.append(len(batch.batch.data))
        self.stored.set()

    async def commit(self, id: str, *, records: int, size: int, digest: bytes) -> BulkResult:
        self.commits += 1
        self.committing.set()
        await self.may_commit.wait()
        found = [(record.data, record.key) for batch in self.staged.pop(id) for record in batch.records()]
        assert len(found) == records
        self.visible.extend(found)
        self.committed.set()
        origin = next(origin for origin in self.origins if origin.id == id)
        result = BulkResult(id=id, collection=self.name, records=records, size=size, digest=digest, committed_at=1.0)
        if origin.key is not None:
            self.results[origin.principal, origin.key] = dataclasses.replace(result, repeated=True)
        return result

    async def rollback(self, id: str) -> None:
        self.staged.pop(id, None)
        self.rolled_back.set()

    async def sweep(self, older_than: float, *, results_older_than: float | None = None) -> int:
        return 0


Produce = Callable[[Mapping[str, Argument]], AsyncGenerator[RecordBatch, None]]


class Produced(RecordSource):
    """A source that gives what a generator yields."""

    def __init__(self, produce: Produce) -> None:
        self._produce = produce

    @property
    def parameters(self) -> Mapping[str, type]:
        return {"count": int}

    @property
    def required(self) -> frozenset[str]:
        return frozenset()

    def query(self, arguments: Mapping[str, Argument]) -> AsyncGenerator[RecordBatch, None]:
        return self._produce(arguments)


def ends(sink: MemorySink, produce: Produce | None = None, *, content_type: str = JSON) -> RecordEnds:
    """Return the ends of a server: the collection of the sink, and perhaps a source ``numbers``."""
    sources = {} if produce is None else {"numbers": Source(source=Produced(produce), content_type=content_type)}
    return RecordEnds(collections={sink.name: Collection(sink=sink, content_type=content_type)}, sources=sources)
