"""Queues of records in a file of SQLite."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tailrace_common_api import QueuedRecord, Settlement, Verdict
from tailrace_impl_server._queue_rules import DEAD_SUFFIX, DEFAULT_LEASE, Answers
from tailrace_impl_server._sqlite_queue_statements import Terms, fed, make_tables
from tailrace_impl_server._sqlite_sink import SqliteSink
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import Claim, Depth, RecordQueue, RecordSink


class SqliteQueue(RecordQueue):
    """A queue in the table that all queues of a file share. One server has the file at a time.

    Times are those of this machine, on which a change of its clock has no influence while the server runs. Cancelling a
    call may leave it done; what was leased by it comes again when the lease has ended.
    """

    def __init__(
        self,
        name: str,
        thread: SqliteThread,
        staging: SqliteThread,
        *,
        lease: float = DEFAULT_LEASE,
        max_attempts: int = 0,
        letters_of: SqliteQueue | None = None,
    ) -> None:
        """Describe the queue; nothing is touched before :meth:`start`.

        Args:
            name: Name of the queue.
            thread: The file where it is; started and closed with it.
            staging: Another file, where bulks of work are staged; the same for every queue on ``thread``.
            lease: Time that a consumer has for a record, in seconds.
            max_attempts: Deliveries after which a record that was not acknowledged is a dead letter; 0 for no limit.
            letters_of: The queue whose dead letters these are; ``None`` for a queue of its own.
        """
        self.name = name
        """Name of the queue."""
        self._thread = thread
        self._lease = lease
        self._max_attempts = max_attempts
        self._wakes: list[Callable[[], None]] = []
        self._started = False
        self._epoch = time.time() - time.monotonic()
        self._sink = SqliteSink(name, thread, staging, into=fed(name), committed=self.wake)
        self._dead = (
            self if letters_of else SqliteQueue(f"{name}{DEAD_SUFFIX}", thread, staging, lease=lease, letters_of=self)
        )
        self._terms = Terms(name, self._dead.name, lease, max_attempts)

    @property
    def dead(self) -> SqliteQueue:
        """The queue of the dead letters of this one, of its own name; it is itself for such a queue."""
        return self._dead

    @property
    def sink(self) -> RecordSink:
        return self._sink

    @property
    def lease(self) -> float:
        return self._lease

    async def start(self) -> None:
        await self._thread.start()
        try:
            await self._thread.run(make_tables)
            if self._dead is not self:
                await self._sink.start()
        except BaseException:
            await self._thread.close()
            raise
        self._started = True

    async def close(self) -> None:
        if self._started:
            self._started = False
            if self._dead is not self:
                await self._sink.close()
            await self._thread.close()

    def subscribe(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)

    def wake(self) -> None:
        """Tell those who have subscribed that there may be something to claim."""
        for wake in self._wakes:
            wake()

    def _now(self) -> float:
        return self._epoch + time.monotonic()

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Sequence[QueuedRecord]]:
        handed, dead = await self._thread.run(lambda connection: self._terms.claim(connection, claims, self._now()))
        if dead:
            self._dead.wake()
        return handed

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        if not settlements:
            return []
        answers = Answers(settlements)
        counting = await self._thread.run(
            lambda connection: self._terms.settle(connection, settlements, answers, self._now())
        )
        requeued, dead = Verdict.REQUEUE in answers.by_verdict, Verdict.DEAD_LETTER in answers.by_verdict
        if requeued:
            self.wake()
        if dead or (requeued and self._max_attempts):
            self._dead.wake()
        return counting

    async def release(self, deliveries: Sequence[tuple[int, int]]) -> None:
        if deliveries:
            await self._thread.run(lambda connection: self._terms.release(connection, deliveries))
            self.wake()

    async def next_due(self) -> float | None:
        due = await self._thread.read(self._terms.next_due)
        return None if due is None else max(0.0, due - self._now())

    async def depth(self) -> Depth:
        return await self._thread.read(lambda connection: self._terms.depth(connection, self._now()))
