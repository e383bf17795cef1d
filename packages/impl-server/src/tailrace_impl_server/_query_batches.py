"""Batches of a query: what a source gives, in pieces that suit one message.

A task drives the source and fills one message ahead of the reader, no more. The reader takes whatever is there as soon
as it comes, so a record never waits for the next one, and while the reader is busy with one message the next one grows.
The first messages are small whatever the source can do: 1, 2, 4 … records, until bytes bound them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from itertools import accumulate

from tailrace_common_api import MAX_KEY_SIZE, MAX_RECORD_SIZE, RECORD_OVERHEAD, QueryFailed, RecordBatch, TailraceError
from tailrace_impl_common import Signal, cancel_and_wait
from tailrace_impl_common.record_messages import MESSAGE_BYTES, MESSAGE_RECORDS

logger = logging.getLogger(__name__)

_TURN = 0.001
"""Time after which a source that never waits lets others have their turn, in seconds."""


class QueryBatches:
    """The batches of one query. Belongs to one event loop."""

    def __init__(
        self,
        name: str,
        records: AsyncGenerator[RecordBatch, None],
        *,
        most: int | None = None,
        running: set[QueryBatches] | None = None,
        sent: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Take records of the source ``name``; nothing runs before the first batch is asked for.

        Args:
            name: Name of the source, for the log.
            records: What the source gives.
            most: Most records that are taken; ``None`` for all.
            running: Holds this while the source runs.
            sent: Called with the number of records of each batch that is handed out.
        """
        self._name = name
        self._records = records
        self._left = most
        self._running = set() if running is None else running
        self._sent = sent
        self._data: list[bytes] = []
        self._keys: list[str | None] = []
        self._size = 0
        self._room = 1
        """Most records that wait for the reader."""
        self._ended = False
        self._failure: TailraceError | None = None
        self._filling: asyncio.Task[None] | None = None
        self._filled = Signal()
        self._emptied = Signal()

    def fail(self, error: TailraceError) -> None:
        """End the source, and tell the reader ``error`` instead of what was not read yet."""
        self._data, self._keys, self._size = [], [], 0
        self._end(error)
        if self._filling is not None:
            self._filling.cancel()

    async def ended(self) -> None:
        """Wait until the source has ended."""
        if self._filling is not None:
            await asyncio.wait((self._filling,))

    async def batches(self) -> AsyncGenerator[RecordBatch, None]:
        """Yield the batches; closing this closes the source, also while that waits.

        Raises:
            QueryFailed: The source failed with what is not meant for the reader; it is logged.
            TailraceError: The source failed with what is.
        """
        if self._left == 0:
            await self._records.aclose()
            return
        self._filling = filling = asyncio.create_task(self._fill(), name=f"tailrace-query-{self._name}")
        self._running.add(self)
        try:
            while True:
                if self._data:
                    batch = RecordBatch(self._data, self._keys)
                    self._data, self._keys, self._size = [], [], 0
                    self._room = min(2 * self._room, MESSAGE_RECORDS)
                    self._emptied.notify()
                    self._sent(len(batch.data))
                    yield batch
                elif self._failure is not None:
                    raise self._failure
                elif self._ended:
                    return
                else:
                    await self._filled.wait()
        finally:
            try:
                await cancel_and_wait(filling)
            finally:
                self._running.discard(self)

    def _end(self, failure: TailraceError | None) -> None:
        if not self._ended:
            self._ended, self._failure = True, failure
        self._filled.notify()

    async def _fill(self) -> None:
        failure: TailraceError | None = None
        try:
            async with aclosing(self._records):
                await self._take()
        except TailraceError as error:
            failure = error
        except Exception:
            logger.exception("source %s failed", self._name, extra={"source": self._name})
            failure = QueryFailed(f"source {self._name!a} failed; the log of the server says why")
        self._end(failure)

    async def _take(self) -> None:
        turn = time.perf_counter() + _TURN
        async for batch in self._records:
            await self._add(batch)
            if self._left == 0:
                return
            if time.perf_counter() > turn:
                await asyncio.sleep(0)
                turn = time.perf_counter() + _TURN

    async def _add(self, batch: RecordBatch) -> None:
        """Add what a source gave, as the reader makes room for it; a batch may be larger than a message."""
        data, keys = batch.data, batch.keys
        count = len(data) if self._left is None else min(len(data), self._left)
        totals = list(accumulate(_checked_sizes(batch)[:count], initial=0))
        start = 0
        while start < count:
            while not self._has_room():
                await self._emptied.wait()
            end = self._fitting(totals, start)
            if keys:
                # Records without keys may stand before these.
                self._keys.extend([None] * (len(self._data) - len(self._keys)))
                self._keys.extend(keys[start:end])
            elif self._keys:
                self._keys.extend([None] * (end - start))
            self._data.extend(data[start:end])
            if self._left is not None:
                self._left -= end - start
            start = end
            self._filled.notify()

    def _has_room(self) -> bool:
        return len(self._data) < self._room and self._size < MESSAGE_BYTES

    def _fitting(self, totals: Sequence[int], start: int) -> int:
        """Return up to which record of a batch what waits stays within one message, and count these.

        ``totals`` are what the first 0, 1, 2 … records of the batch count for together.
        """
        last = min(len(totals) - 1, start + self._room - len(self._data))
        end = bisect_right(totals, totals[start] + MESSAGE_BYTES - self._size, start, last + 1) - 1
        if end > start:
            self._size += totals[end] - totals[start]
            return end
        # Nothing more goes into this message, but for a record that is larger than one.
        self._size = MESSAGE_BYTES
        return start if self._data else start + 1


def _checked_sizes(batch: RecordBatch) -> Sequence[int]:
    """Return what each record counts for in a message.

    Raises:
        QueryFailed: A record is too large.
        ValueError: A key is none, or is missing.
    """
    data, keys = batch.data, batch.keys
    sizes = list(map(len, data))
    if keys:
        of_keys = [len(key.encode()) if key is not None else None for key in keys]
        if len(of_keys) != len(data) or not all(size is None or 0 < size <= MAX_KEY_SIZE for size in of_keys):
            raise ValueError(f"keys are texts of 1 to {MAX_KEY_SIZE} bytes or None, one for each record")
        sizes = [one + (size or 0) for one, size in zip(sizes, of_keys, strict=True)]
    largest = max(sizes, default=0)
    if largest > MAX_RECORD_SIZE:
        raise QueryFailed(f"a record has {largest} bytes; at most {MAX_RECORD_SIZE} can be sent")
    return [size + RECORD_OVERHEAD for size in sizes]
