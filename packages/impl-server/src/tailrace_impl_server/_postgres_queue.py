"""Queues of records in a PostgreSQL database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import asyncpg

from tailrace_common_api import QueuedRecord, Settlement, StorageFailure, Verdict
from tailrace_impl_server import _postgres_queue_statements as statements
from tailrace_impl_server._concurrent_queue import ConcurrentQueue
from tailrace_impl_server._postgres import Connection, PostgresDatabase
from tailrace_impl_server._postgres_bulks import MAKING_TABLES
from tailrace_impl_server._postgres_ready_search import ReadySearch, Scan
from tailrace_impl_server._postgres_sink import PostgresSink
from tailrace_impl_server._queue_rules import DEAD_SUFFIX, DEFAULT_LEASE, Answers, Assignment, Candidate
from tailrace_server_api import Claim, Depth, RecordSink

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_CANDIDATES = 500
"""Most records that are looked at and locked at once."""
_TRIES = 3
"""How often a transaction is begun that the database ends to break a deadlock."""
_COUNTS = 500
"""Changes of the number of records after which they are summed."""


class PostgresQueue(ConcurrentQueue):
    """A queue in the table that all queues of a database share.

    Claims skip what other servers are claiming at the same time, and only the time of the database counts. Cancelling a
    call may leave it done; what was leased by it comes again when the lease has ended.
    """

    def __init__(
        self,
        name: str,
        database: PostgresDatabase,
        *,
        lease: float = DEFAULT_LEASE,
        max_attempts: int = 0,
        letters_of: PostgresQueue | None = None,
    ) -> None:
        """Describe the queue; nothing is touched before :meth:`start`.

        Args:
            name: Name of the queue.
            database: Where it is; started and closed with it.
            lease: Time that a consumer has for a record, in seconds.
            max_attempts: Deliveries after which a record that was not acknowledged is a dead letter; 0 for no limit.
            letters_of: The queue whose dead letters these are; ``None`` for a queue of its own.
        """
        self.name = name
        """Name of the queue."""
        self._database = database
        self._lease = lease
        self._max_attempts = max_attempts
        self._wakes: list[Callable[[], None]] = []
        self._search = ReadySearch()
        self._claiming = asyncio.Lock()
        # Whether a claim has made dead letters that nobody was told of.
        self._died = False
        self._again: asyncio.TimerHandle | None = None
        self._uncounted = 0
        self._upkeep_due = asyncio.Event()
        self._upkeep: asyncio.Task[None] | None = None
        database.hints.subscribe(name, self._wake_here)
        self._sink = PostgresSink(name, database, into=statements.fed(name), committed=self.wake)
        self._dead = (
            self if letters_of else PostgresQueue(f"{name}{DEAD_SUFFIX}", database, lease=lease, letters_of=self)
        )

    @property
    def dead(self) -> PostgresQueue:
        """The queue of the dead letters of this one, of its own name; it is itself for such a queue."""
        return self._dead

    @property
    def sink(self) -> RecordSink:
        return self._sink

    @property
    def lease(self) -> float:
        return self._lease

    async def start(self) -> None:
        await self._database.start()
        try:
            async with self._database.connection() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", MAKING_TABLES)
                # Making what is there already would wait for all who write to it, and have all others wait.
                if not await connection.fetchval(statements.ARE_MADE):
                    await connection.execute(statements.TABLES)
            if self._dead is not self:
                await self._sink.start()
        except BaseException:
            await self._database.close()
            raise
        await self._database.hints.start()
        self._upkeep = asyncio.create_task(self._keep_up(), name=f"upkeep of the queue {self.name}")

    async def close(self) -> None:
        if self._upkeep is None:
            return
        upkeep, self._upkeep = self._upkeep, None
        if self._again is not None:
            self._again.cancel()
        upkeep.cancel()
        with suppress(asyncio.CancelledError):
            await upkeep
        await self._database.hints.close()
        if self._dead is not self:
            await self._sink.close()
        await self._database.close()

    def subscribe(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)

    def wake(self) -> None:
        """Tell those who have subscribed, and other servers, that there may be something to claim."""
        self._wake_here()
        self._database.hints.tell(self.name)

    def _wake_here(self) -> None:
        self._search.changed()
        for wake in self._wakes:
            wake()

    # Transactions.

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        async with self._database.connection() as connection:
            try:
                await connection.execute(statements.BEGIN)
                yield connection
            except BaseException:
                # Without it the connection would be ended, and one more made. A beginning that was cancelled may have
                # begun.
                if not connection.is_closed():
                    await connection.execute("ROLLBACK")
                raise
            await connection.execute("COMMIT")

    async def _in_transaction(self, work: Callable[[Connection], Awaitable[_T]]) -> _T:
        """Do ``work`` in a transaction; again, when others have locked the same records in another order."""
        for attempt in range(1, _TRIES + 1):
            try:
                async with self._transaction() as connection:
                    return await work(connection)
            except StorageFailure as error:
                if attempt == _TRIES or not isinstance(error.__cause__, asyncpg.DeadlockDetectedError):
                    raise
        raise AssertionError

    # Handing out.

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Sequence[QueuedRecord]]:
        # What one claim has locked and leaves must not count as gone for the next one.
        async with self._claiming:
            handed, scan = await self._in_transaction(lambda connection: self._claim(connection, claims))
            died, self._died = self._died, False
            again = self._search.end(scan, {record.id for records in handed for record in records})
        if died:
            self._dead.wake()
        if again is not None and self._again is None:
            self._again = asyncio.get_running_loop().call_later(again, self._look_again)
        return handed

    async def _claim(
        self, connection: Connection, claims: Sequence[Claim]
    ) -> tuple[Sequence[Sequence[QueuedRecord]], Scan]:
        assignment = Assignment(claims)
        scan = self._search.begin()
        while limit := min(assignment.wanted, _CANDIDATES):
            rows = await connection.fetch(statements.READY, self.name, *scan.parts(), limit, scan.thorough)
            self._search.looked(scan)
            if rows[0]["any_due"] and not scan.found and await self._take_back(connection):
                continue
            found = sorted((row["rank"], row["id"], row["size"]) for row in rows if row["id"] is not None)
            scan.found += [(rank, number) for rank, number, _ in found]
            left = assignment.deal([Candidate(number, size) for _, number, size in found])
            if left is not None or len(found) < limit:
                break
        return await self._leased(connection, claims, assignment.given), scan

    def _look_again(self) -> None:
        self._again = None
        self._wake_here()

    async def _take_back(self, connection: Connection) -> int:
        """Take back the records whose lease or delay has ended; return how many."""
        delays = await connection.fetch(statements.ENDED_DELAYS, self.name)
        leases = await connection.fetch(statements.ENDED_LEASES, self.name, self._max_attempts, self._dead.name)
        if exhausted := sum(row["exhausted"] for row in leases):
            await connection.execute(statements.COUNT, self._dead.name, exhausted, self.name)
            self._died = True
        return len(delays) + len(leases)

    async def _leased(
        self, connection: Connection, claims: Sequence[Claim], given: Sequence[Sequence[int]]
    ) -> Sequence[Sequence[QueuedRecord]]:
        ids = [number for consumer in given for number in consumer]
        if not ids:
            return [[] for _ in claims]
        consumers = [claim.consumer for claim, its in zip(claims, given, strict=True) for _ in its]
        rows = await connection.fetch(statements.LEASE, ids, consumers, self._lease)
        records = {row[0]: QueuedRecord(*row) for row in rows}
        return [[records[number] for number in consumer] for consumer in given]

    # Answers.

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        if not settlements:
            return []
        answers = Answers(settlements)
        counting = await self._in_transaction(lambda connection: self._settle(connection, settlements, answers))
        self._uncounted += 1
        if self._uncounted >= _COUNTS:
            self._upkeep_due.set()
        requeued = [item.id for item in answers.by_verdict.get(Verdict.REQUEUE, ())]
        dead = [item.id for item in answers.by_verdict.get(Verdict.DEAD_LETTER, ())]
        if requeued:
            self._search.given_back(requeued)
            self.wake()
        if dead or (requeued and self._max_attempts):
            self._dead._search.given_back(requeued + dead)
            self._dead.wake()
        return counting

    async def _settle(
        self, connection: Connection, settlements: Sequence[Settlement], answers: Answers
    ) -> Sequence[bool]:
        taken: set[tuple[Verdict, int, int]] = set()
        # An extension goes first: its consumer has asked for it before it answered.
        for verdict in (Verdict.EXTEND, Verdict.ACKNOWLEDGE, Verdict.REQUEUE, Verdict.DEAD_LETTER):
            given = answers.by_verdict.get(verdict)
            if given:
                rows = await self._take(connection, verdict, given)
                taken.update((verdict, row["id"], row["attempt"]) for row in rows)
        counting = [(item.verdict, item.id, item.attempt) in taken for item in settlements]
        rest = [index for index, counts in enumerate(counting) if not counts]
        if rest:
            rows = await connection.fetch(
                statements.ANSWERED,
                [settlements[index].id for index in rest],
                [settlements[index].attempt for index in rest],
                [settlements[index].verdict.value for index in rest],
            )
            for row in rows:
                counting[rest[row["number"] - 1]] = True
        return counting

    async def _take(
        self, connection: Connection, verdict: Verdict, given: Sequence[Settlement]
    ) -> Sequence[asyncpg.Record]:
        ids, attempts = [item.id for item in given], [item.attempt for item in given]
        seconds, reasons = [item.seconds for item in given], [item.reason for item in given]
        match verdict:
            case Verdict.EXTEND:
                leases = [term or self._lease for term in seconds]
                return await connection.fetch(statements.EXTEND, self.name, ids, attempts, leases)
            case Verdict.ACKNOWLEDGE:
                return await connection.fetch(statements.ACKNOWLEDGE, self.name, ids, attempts, self._lease)
            case Verdict.REQUEUE:
                terms = (self._lease, seconds, reasons, self._max_attempts, self._dead.name)
                return await connection.fetch(statements.REQUEUE, self.name, ids, attempts, *terms)
            case Verdict.DEAD_LETTER:
                end = (self._lease, reasons, self._dead.name)
                return await connection.fetch(statements.DEAD_LETTER, self.name, ids, attempts, *end)

    async def release(self, deliveries: Sequence[tuple[int, int]]) -> None:
        if not deliveries:
            return
        ids, attempts = [list(column) for column in zip(*sorted(deliveries), strict=True)]
        await self._in_transaction(lambda connection: connection.fetch(statements.RELEASE, self.name, ids, attempts))
        self._search.given_back(ids)
        self.wake()

    # Looking.

    async def next_due(self) -> float | None:
        async with self._transaction() as connection:
            seconds: float | None = await connection.fetchval(statements.NEXT_DUE, self.name)
        if seconds is not None and seconds <= 0:
            self._search.force()
        return None if seconds is None else max(0.0, seconds)

    async def depth(self) -> Depth:
        async with self._transaction() as connection:
            [row] = await connection.fetch(statements.DEPTH, self.name, self._dead.name)
        total, leased, delayed, dead = row
        ready = max(0, total - leased - delayed)
        return Depth(ready=ready, delayed=delayed, in_flight=leased, dead=0 if self._dead is self else dead)

    # Upkeep.

    async def _keep_up(self) -> None:
        """Sum the counts and forget old answers, now and then."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(1.0, min(self._lease, 60.0))):
                    await self._upkeep_due.wait()
            self._upkeep_due.clear()
            self._uncounted = 0
            try:
                async with self._transaction() as connection:
                    await connection.execute(statements.SUM_COUNTS, self.name)
                    await connection.execute(statements.FORGET)
            except StorageFailure as error:
                _log.warning("the queue %s could not be tidied up: %s", self.name, error)
