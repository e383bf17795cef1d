"""The record streams of one server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from tailrace_common_api import (
    RECORD_OVERHEAD,
    Argument,
    BulkConflict,
    BulkResult,
    GoingAway,
    InvalidArgument,
    Overloaded,
    QueueFigures,
    RecordEndNotFound,
    Reporting,
    TailraceError,
    check_priority,
)
from tailrace_impl_common import IdGenerator, Signal
from tailrace_impl_server._bulk_endings import taken_over
from tailrace_impl_server._bulk_ingest import Outcome, StagedBulk
from tailrace_impl_server._bulk_windows import BulkWindows
from tailrace_impl_server._live_resource import GOING_AWAY_RETRY
from tailrace_impl_server._query_arguments import read_arguments
from tailrace_impl_server._query_batches import QueryBatches
from tailrace_impl_server._queue_sampler import QueueSampler
from tailrace_impl_server._record_counts import RecordCounts
from tailrace_impl_server._record_validation import FileValidator, validator_for
from tailrace_impl_server._repeated_bulk import RepeatedBulk
from tailrace_impl_server._running_tasks import RunningTasks
from tailrace_impl_server._settings import ServerSettings
from tailrace_impl_server._staging_sweeper import StagingSweeper
from tailrace_impl_server._work_dispatcher import WorkDispatcher
from tailrace_server_api import (
    BulkIngest,
    BulkOrigin,
    Collection,
    QueryResults,
    Queue,
    RecordEnds,
    RecordService,
    RecordSink,
    WorkSession,
)

logger = logging.getLogger(__name__)

DEAD = ".dead"
"""Behind the name of a queue: that of its dead-letter queue, which can be worked and not fed."""
_RETRY_AFTER = 1.0
_LONGEST_KEY = 255


class _End(Protocol):
    """What is started and closed."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class RecordStreams(RecordService):
    """Record streams over the ends that a server has, for a caller without bounds."""

    def __init__(self, ends: RecordEnds, settings: ServerSettings, counts: RecordCounts | None = None) -> None:
        """Use ``ends``, which are started and closed with this object; tell ``counts`` what happens."""
        self._ends = ends
        self._counts = counts = counts or RecordCounts()
        self._settings = settings
        self._targets: dict[str, tuple[Collection | Queue, RecordSink]] = {
            name: (collection, collection.sink) for name, collection in ends.collections.items()
        }
        for name, queue in ends.queues.items():
            if not (name.endswith(DEAD) and name.removesuffix(DEAD) in ends.queues):
                self._targets[name] = (queue, queue.queue.sink)
        self._validators = {
            name: validator_for(target.validator, target.content_type) for name, (target, _) in self._targets.items()
        }
        self._sweeper = StagingSweeper(
            [(name, sink) for name, (_, sink) in self._targets.items()],
            retention=settings.staging_retention,
            result_retention=settings.bulk_result_retention,
            interval=settings.sweep_interval,
        )
        self._dispatchers = {name: WorkDispatcher(name, queue, settings) for name, queue in ends.queues.items()}
        self._sampler = QueueSampler(list(self._dispatchers.values()), counts, interval=settings.sweep_interval)
        self._ids = IdGenerator()
        self._tasks = RunningTasks()
        self._started: list[_End] = []
        self._bulks: dict[str, StagedBulk] = {}
        self._windows = BulkWindows(
            total=settings.bulk_windows_total,
            largest=settings.bulk_window,
            least=min(settings.bulk_window, settings.max_record_size + RECORD_OVERHEAD),
        )
        self._beginning = 0
        self._keys: dict[tuple[str, str], tuple[str, str, int]] = {}
        """By principal and key of a bulk that runs: its id, its collection, and its priority."""
        self._queries: set[QueryBatches] = set()
        self._changed = Signal()
        self._closing = False

    async def start(self) -> None:
        """Start all ends; called once. When one cannot be started, the others are closed again.

        Raises:
            ConfigurationError: A target or the file of a schema is not there, or is not what the settings say.
            StorageFailure: A database does not work.
        """
        ends: list[_End] = [collection.sink for collection in self._ends.collections.values()]
        ends.extend(source.source for source in self._ends.sources.values())
        ends.extend(queue.queue for queue in self._ends.queues.values())
        try:
            for validator in self._validators.values():
                if isinstance(validator, FileValidator):
                    await validator.load()
            for end in ends:
                await end.start()
                self._started.append(end)
            for dispatcher in self._dispatchers.values():
                await dispatcher.start()
                self._started.append(dispatcher)
        except BaseException:
            await self._close_ends()
            raise
        self._sweeper.start()
        self._sampler.start()

    def go_away(self) -> None:
        """Tell everyone ``GoingAway`` and take nothing new; bulks that are being committed go on."""
        self._closing = True
        for bulk in list(self._bulks.values()):
            bulk.fail(GoingAway(retry_after=GOING_AWAY_RETRY))
        for query in self._queries:
            query.fail(GoingAway(retry_after=GOING_AWAY_RETRY))
        for dispatcher in self._dispatchers.values():
            dispatcher.go_away()

    async def close(self) -> None:
        """Wait for commits that run, roll everything else back, and close all ends; idempotent."""
        self.go_away()
        await self._sweeper.close()
        await self._sampler.close()
        while self._bulks or self._beginning:
            await self._changed.wait()
        await self._tasks.wait()
        for query in list(self._queries):
            await query.ended()
        await self._close_ends()

    async def _close_ends(self) -> None:
        while self._started:
            end = self._started.pop()
            try:
                await end.close()
            except Exception:
                # The others are closed all the same.
                logger.exception("closing an end of record streams failed")

    # Bulks.

    async def begin_bulk(
        self,
        collection: str,
        *,
        content_type: str | None = None,
        key: str | None = None,
        reporting: Reporting = Reporting.FIRST,
        priority: int = 0,
        principal: str = "",
    ) -> BulkIngest:
        self._refuse_when_closing()
        if collection not in self._targets:
            raise RecordEndNotFound(kind="collection or queue", id=collection)
        target, sink = self._targets[collection]
        _check_bulk(target, content_type, key, priority)
        bulk_id, _ = self._ids.next()
        if key is not None:
            # Of two at the same time with one key and different targets, no database sees both.
            _, other, others = self._keys.get((principal, key), ("", collection, priority))
            if (other, others) != (collection, priority):
                raise BulkConflict(id=self._keys[principal, key][0])
        if len(self._bulks) + self._beginning >= self._settings.max_bulks:
            raise Overloaded(what="bulks", retry_after=_RETRY_AFTER)
        origin = BulkOrigin(id=bulk_id, principal=principal, key=key, priority=priority)
        self._beginning += 1
        try:
            result = await self._begin(sink, origin)
            if result is not None:
                return self._repeated(bulk_id, collection, result)
            window = self._windows.take()
            bulk = StagedBulk(
                bulk_id,
                sink,
                self._validators[collection],
                self._settings,
                self._tasks,
                window=window,
                content_type=target.content_type,
                reporting=reporting,
                ended=lambda bulk, outcome: self._bulk_ended(collection, bulk, outcome, (principal, key)),
                staged=lambda records: self._counts.staged(collection, records),
            )
        finally:
            self._beginning -= 1
            self._changed.notify()
        self._bulks[bulk_id] = bulk
        self._counts.bulk_began(collection)
        if key is not None:
            if (before := self._keys.get((principal, key))) is not None and before[0] in self._bulks:
                # The sink has fenced it; this way its client hears of it now.
                self._bulks[before[0]].fail(taken_over())
            self._keys[principal, key] = (bulk_id, collection, priority)
        if self._closing:
            bulk.fail(GoingAway(retry_after=GOING_AWAY_RETRY))
            raise GoingAway(retry_after=GOING_AWAY_RETRY)
        return bulk

    async def _begin(self, sink: RecordSink, origin: BulkOrigin) -> BulkResult | None:
        try:
            return await sink.begin(origin)
        except BaseException:
            # It may have begun all the same.
            self._tasks.start(self._forget(sink, origin.id), "tailrace-bulk-end")
            raise

    async def _forget(self, sink: RecordSink, id: str) -> None:
        try:
            await sink.rollback(id)
        except TailraceError as error:
            logger.warning("a bulk could not be purged; it is later: %s", error, extra={"bulk": id})

    def _repeated(self, id: str, collection: str, result: BulkResult) -> BulkIngest:
        if result.collection != collection:
            raise BulkConflict(id=result.id)
        target, _ = self._targets[collection]
        return RepeatedBulk(id, target.content_type, self._settings.record_limits, result)

    def _bulk_ended(self, collection: str, bulk: StagedBulk, outcome: Outcome, keyed: tuple[str, str | None]) -> None:
        del self._bulks[bulk.id]
        self._windows.give_back(bulk.limits.window)
        principal, key = keyed
        if key is not None and self._keys.get((principal, key), ("",))[0] == bulk.id:
            del self._keys[principal, key]
        self._counts.bulk_ended(collection, outcome.value)
        self._changed.notify()

    # Queries.

    async def query(self, source: str, arguments: Mapping[str, Argument]) -> QueryResults:
        self._refuse_when_closing()
        found = self._ends.sources.get(source)
        if found is None:
            raise RecordEndNotFound(kind="source", id=source)
        known, most = read_arguments(found.source, arguments)
        self._counts.query_began(source)
        batches = QueryBatches(
            source,
            found.source.query(known),
            most=most,
            running=self._queries,
            sent=lambda records: self._counts.sent(source, records),
        )
        return QueryResults(content_type=found.content_type, batches=batches.batches())

    # Work.

    async def work(self, queue: str) -> WorkSession:
        self._refuse_when_closing()
        dispatcher = self._dispatcher(queue)
        if sum(other.consumers for other in self._dispatchers.values()) >= self._settings.max_consumers:
            raise Overloaded(what="consumers", retry_after=_RETRY_AFTER)
        return dispatcher.open()

    async def queue_figures(self, queue: str) -> QueueFigures:
        self._refuse_when_closing()
        return await self._dispatcher(queue).figures()

    def _dispatcher(self, queue: str) -> WorkDispatcher:
        if queue not in self._dispatchers:
            raise RecordEndNotFound(kind="queue", id=queue)
        return self._dispatchers[queue]

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise GoingAway(retry_after=GOING_AWAY_RETRY)


def _check_bulk(target: Collection | Queue, content_type: str | None, key: str | None, priority: int) -> None:
    if content_type is not None and content_type != target.content_type:
        problem = f"{content_type[:80]!a} where the records are {target.content_type!a}"
        raise InvalidArgument(field="content_type", problem=problem)
    if key is not None and not (1 <= len(key) <= _LONGEST_KEY and key.isprintable()):
        raise InvalidArgument(field="idempotency_key", problem=f"not 1 to {_LONGEST_KEY} printable characters")
    if check_priority(priority) and isinstance(target, Collection):
        raise InvalidArgument(field="priority", problem="a collection has no priorities")
