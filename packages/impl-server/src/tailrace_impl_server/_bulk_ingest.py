"""One bulk between its client and its sink: validated, grouped, staged, and committed or purged.

Records pass three places: *arrived* (limits checked, digest taken), *valid* (validated), *staged* (in the database, or
dropped because the bulk is lost anyway). Bytes that have left the last one are granted to the client again, so all that
waits is bounded by one window. Two tasks of each bulk move them on, so that records are validated while others are
staged; :meth:`StagedBulk.submit` validates the first of a message itself.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from tailrace_common_api import (
    MAX_KEY_SIZE,
    RECORD_OVERHEAD,
    BulkRefused,
    BulkResult,
    DeadlineExceeded,
    IntegrityError,
    InternalError,
    ProblemKind,
    ProtocolError,
    QuotaExceeded,
    RecordBatch,
    RecordLimits,
    RecordProblem,
    Reporting,
    TailraceError,
    record_problems,
    refused_records,
)
from tailrace_impl_common import RecordDigest, Signal, cancel_and_wait
from tailrace_impl_server._running_tasks import RunningTasks
from tailrace_impl_server._settings import ServerSettings
from tailrace_server_api import BulkIngest, RecordSink, StagedBatch, Validator

logger = logging.getLogger(__name__)

RECORD_BYTES, BULK_RECORDS, BULK_BYTES = "bytes per record", "records per bulk", "bytes per bulk"
"""Names of the limits, for ``QuotaExceeded``."""
MOST_PROBLEMS = 100
"""Most problems of one bulk that are told."""

_SLICE_SECONDS = 0.0005
"""Time that one slice of validation is meant to take: nothing else runs on the loop meanwhile."""
_FIRST_SLICE, _LARGEST_SLICE = 32, 4096


class Outcome(enum.Enum):
    """How a bulk has ended."""

    COMMITTED = "committed"
    REFUSED = "refused"
    """Its records could not be accepted."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    """Its client gave it up, or was lost."""


class _Waiting(NamedTuple):
    """Records that wait to be validated, or to be staged."""

    first: int
    """Number of the first of them in the bulk."""
    batch: RecordBatch
    values: Sequence[object]
    """What they say; empty until they are validated."""
    sizes: Sequence[int]
    """Bytes of each, data and key."""
    arrived: float
    """When, on the loop's clock."""


class StagedBulk(BulkIngest):
    """A bulk that is staged in a sink. Made after the sink has begun it.

    Whatever ends it but a commit purges it, at once and in the background; :meth:`rollback` waits for that.
    """

    def __init__(
        self,
        id: str,
        sink: RecordSink,
        validator: Validator,
        settings: ServerSettings,
        tasks: RunningTasks,
        *,
        window: int,
        content_type: str,
        reporting: Reporting,
        ended: Callable[[StagedBulk, Outcome], None],
        staged: Callable[[int], None],
    ) -> None:
        """Begin to take records.

        Args:
            id: Id of the bulk.
            sink: Where it was begun.
            validator: What checks its records.
            settings: Limits and groups.
            tasks: Holds what goes on in the background.
            window: Bytes of records that may wait, each with its overhead.
            content_type: Content type of its records.
            reporting: Which problems are told.
            ended: Called once, when nothing more happens to the bulk.
            staged: Called with a number of records each time when so many were staged.
        """
        self._id = id
        self._sink = sink
        self._validator = validator
        self._settings = settings
        self._tasks = tasks
        self._content_type = content_type
        self._reporting = reporting
        self._ended = ended
        self._staged = staged
        self._window = window
        self._limits = replace(settings.record_limits, window=window)
        self._loop = asyncio.get_running_loop()
        self._digest = RecordDigest()
        self._records = 0
        self._bytes = 0
        self._submitted = 0
        self._released = 0
        """Of what was submitted, what the client may send again; both count each record with its overhead."""
        self._arrived: deque[_Waiting] = deque()
        self._arrived_offset = 0
        self._valid: deque[_Waiting] = deque()
        self._valid_offset = 0
        self._valid_records = 0
        self._valid_size = 0
        self._slice = _FIRST_SLICE
        self._problems: list[RecordProblem] = []
        self._problems_total = 0
        self._failure: TailraceError | None = None
        self._flushing = False
        self._active_at = self._loop.time()
        self._moved = Signal()
        """Records have arrived or were validated, or the bulk is to be committed: for the tasks."""
        self._told = Signal()
        """The grant has changed, or the bulk has failed: for who waits."""
        self._commit: asyncio.Task[BulkResult] | None = None
        self._purge: asyncio.Task[None] | None = None
        self._moving = (
            asyncio.create_task(self._guarded(self._validate()), name="tailrace-bulk-validate"),
            asyncio.create_task(self._guarded(self._stage()), name="tailrace-bulk-stage"),
        )
        self._idle = self._loop.call_at(self._active_at + settings.bulk_idle, self._look_for_idleness)

    @property
    def id(self) -> str:
        return self._id

    @property
    def content_type(self) -> str:
        return self._content_type

    @property
    def limits(self) -> RecordLimits:
        return self._limits

    @property
    def result(self) -> None:
        return None

    @property
    def granted(self) -> int:
        return self._released + self._window

    # Records come in.

    def submit(self, batch: RecordBatch) -> None:
        self._check_open()
        try:
            sizes = self._check_sizes(batch)
        except TailraceError as error:
            self._fail(error)
            raise
        first, size = self._records, sum(sizes)
        self._records += len(sizes)
        self._bytes += size
        self._submitted += _counted(size, len(sizes))
        self._active_at = now = self._loop.time()
        self._digest.update(batch)
        self._arrived.append(_Waiting(first, batch, (), sizes, now))
        if len(self._arrived) == 1 and self._wants_more():
            self._validate_slice()
            self._check_failure()
        self._moved.notify()

    def _check_open(self) -> None:
        self._check_failure()
        if self._flushing or self._purge is not None:
            raise ProtocolError("the bulk takes no more records")

    def _check_sizes(self, batch: RecordBatch) -> Sequence[int]:
        """Return the bytes of each record."""
        count = len(batch.data)
        if not count or (batch.keys and len(batch.keys) != count):
            raise ProtocolError(f"{count} records with {len(batch.keys)} keys")
        sizes = _sizes(batch, self._records)
        size, largest = sum(sizes), max(sizes)
        limits = self._limits
        if largest > limits.record_bytes:
            raise QuotaExceeded(limit=RECORD_BYTES, maximum=limits.record_bytes, actual=largest)
        if self._records + count > limits.bulk_records:
            raise QuotaExceeded(limit=BULK_RECORDS, maximum=limits.bulk_records, actual=self._records + count)
        if self._bytes + size > limits.bulk_bytes:
            raise QuotaExceeded(limit=BULK_BYTES, maximum=limits.bulk_bytes, actual=self._bytes + size)
        until = self._submitted + _counted(size, count)
        if until > self.granted:
            raise ProtocolError(f"{until} bytes of records where {self.granted} were granted")
        return sizes

    async def changed(self, granted: int) -> int:
        while self.granted == granted or self._failure is not None:
            self._check_failure()
            if self._purge is not None:
                raise ProtocolError("the bulk has ended")
            await self._told.wait()
        return self.granted

    # Records move on.

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except TailraceError as error:
            self._fail(error)
        except Exception:
            logger.exception("a bulk failed unexpectedly", extra={"bulk": self._id})
            self._fail(InternalError("a defect of the server; its log says more"))

    async def _validate(self) -> None:
        """Validate what arrives; cancelled when the bulk ends."""
        while True:
            if self._arrived and self._wants_more():
                self._validate_slice()
                # Others have their turn between two slices.
                await asyncio.sleep(0)
            else:
                await self._moved.wait()

    def _wants_more(self) -> bool:
        """Return whether records are to be validated: what they say can take far more memory than their bytes."""
        return self._valid_records < 2 * self._settings.group_records

    def _validate_slice(self) -> None:
        """Validate as many records that have arrived as take about half a millisecond."""
        waiting, start = self._arrived[0], self._arrived_offset
        end = min(start + self._slice, len(waiting.sizes))
        part, sizes = waiting.batch, waiting.sizes
        if end - start < len(sizes):
            part, sizes = RecordBatch(part.data[start:end], part.keys[start:end]), sizes[start:end]
        if end == len(waiting.sizes):
            self._arrived.popleft()
            self._arrived_offset = 0
        else:
            self._arrived_offset = end
        began = time.perf_counter()
        values: Sequence[object] = ()
        try:
            values = self._validator.parse(part)
        except BulkRefused as error:
            self._take_problems(record_problems(error), error.total, offset=waiting.first + start)
        took = time.perf_counter() - began
        if took > _SLICE_SECONDS or end - start == self._slice:
            fitting = int((end - start) * _SLICE_SECONDS / max(took, 1e-9))
            # It grows by steps: one quick slice says little about the next.
            self._slice = max(1, min(fitting, 2 * self._slice, _LARGEST_SLICE))
        self._valid.append(_Waiting(waiting.first + start, part, values, sizes, waiting.arrived))
        self._valid_records += len(sizes)
        self._valid_size += _counted(sum(sizes), len(sizes))
        self._moved.notify()

    async def _stage(self) -> None:
        """Stage what is valid; cancelled when the bulk ends."""
        while True:
            if self._problems_total or self._failure is not None:
                self._drop()
                await self._moved.wait()
            elif not self._valid:
                await self._moved.wait()
            elif (wait := self._group_wait()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._moved.wait()
            else:
                await self._stage_group()

    def _group_wait(self) -> float:
        """Return how long the next group may wait for more records, in seconds; 0 or less: not at all."""
        settings = self._settings
        if self._valid_records >= settings.group_records or (self._flushing and not self._arrived):
            return 0.0
        # With half of the window in hand the client may be about to wait for the other half.
        if self._valid_size >= self._window // 2:
            return 0.0
        return self._valid[0].arrived + settings.group_seconds - self._loop.time()

    async def _stage_group(self) -> None:
        group, size = self._take_group()
        self._moved.notify()
        try:
            await self._sink.stage(self._id, group)
        except BulkRefused as error:
            self._take_problems(record_problems(error), error.total, offset=0)
        else:
            self._staged(len(group.batch.data))
        self._release(size)

    def _take_group(self) -> tuple[StagedBatch, int]:
        """Take the next records that are staged together, and what they count for in the window."""
        wanted = min(self._settings.group_records, self._valid_records)
        first = self._valid[0].first + self._valid_offset
        data: list[bytes] = []
        keys: list[str | None] = []
        values: list[object] = []
        size = 0
        while len(data) < wanted:
            part, start = self._valid[0], self._valid_offset
            end = min(start + wanted - len(data), len(part.sizes))
            if part.batch.keys:
                # A batch without keys may stand before it.
                keys.extend([None] * (len(data) - len(keys)))
                keys.extend(part.batch.keys[start:end])
            data.extend(part.batch.data[start:end])
            values.extend(part.values[start:end])
            size += sum(part.sizes[start:end])
            if end == len(part.sizes):
                self._valid.popleft()
                self._valid_offset = 0
            else:
                self._valid_offset = end
        if keys:
            keys.extend([None] * (wanted - len(keys)))
        size = _counted(size, wanted)
        self._valid_records -= wanted
        self._valid_size -= size
        return StagedBatch(first, RecordBatch(data, keys), values), size

    def _drop(self) -> None:
        """Let go of what is not staged any more: the bulk is lost, and what comes is only looked at."""
        size = self._valid_size
        self._valid.clear()
        self._valid_offset = self._valid_records = self._valid_size = 0
        if size:
            self._release(size)
            self._moved.notify()

    def _release(self, size: int) -> None:
        self._released += size
        self._active_at = self._loop.time()
        self._told.notify()

    def _take_problems(self, problems: Sequence[RecordProblem], total: int, *, offset: int) -> None:
        found = [
            RecordProblem(index=offset + item.index, kind=item.kind, field=item.field, problem=item.problem)
            for item in problems
        ]
        self._problems_total += total
        self._problems.extend(found[: MOST_PROBLEMS - len(self._problems)])
        if self._reporting is Reporting.FIRST and found:
            self._fail(refused_records([min(found, key=lambda item: item.index)], 1))

    def _look_for_idleness(self) -> None:
        """Fail when the client could have sent and has not; looked at once in so long, not with each message."""
        if self._flushing or self._failure is not None or self._purge is not None:
            return
        now, idle = self._loop.time(), self._settings.bulk_idle
        # While this side has records in hand, the client may be waiting for it.
        due = self._active_at + idle if self._submitted == self._released else now + idle
        if now < due:
            self._idle = self._loop.call_at(due, self._look_for_idleness)
        else:
            self._fail(DeadlineExceeded(what="the next record of the bulk", seconds=idle))

    # The end.

    async def commit(self, *, records: int, digest: bytes) -> BulkResult:
        self._check_open()
        self._flushing = True
        try:
            self._check_arrived(records, digest)
            self._moved.notify()
            while self._released < self._submitted and self._purge is None:
                await self._told.wait()
            self._check_failure()
            if self._purge is not None:
                raise ProtocolError("the bulk has ended")
            if self._problems_total:
                raise refused_records(sorted(self._problems, key=lambda item: item.index), self._problems_total)
        except TailraceError as error:
            self._fail(error)
            raise
        except BaseException:
            # Nothing has begun to commit, and nothing does any more.
            self._begin_purge()
            raise
        commit = self._sink.commit(self._id, records=records, size=self._bytes, digest=digest)
        self._commit = self._tasks.start(commit, "tailrace-bulk-commit")
        self._commit.add_done_callback(self._committed)
        return await asyncio.shield(self._commit)

    def _check_arrived(self, records: int, digest: bytes) -> None:
        if records != self._records:
            raise IntegrityError(offset=0, problem=f"{records} records were sent and {self._records} arrived")
        if digest != self._digest.digest():
            raise IntegrityError(offset=0, problem="the digest of the records that arrived is not that of those sent")
        if not records:
            raise refused_records([], 0)

    def _committed(self, task: asyncio.Task[BulkResult]) -> None:
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            self._failure = error if isinstance(error, TailraceError) else InternalError("the commit failed")
            self._begin_purge()
        elif self._purge is None:
            # A purge that waited for this does the rest.
            self._begin_purge()

    async def rollback(self) -> None:
        await asyncio.shield(self._begin_purge())

    def fail(self, error: TailraceError) -> None:
        """End the bulk with ``error``, unless it is being committed."""
        if not self._flushing:
            self._fail(error)

    def _fail(self, error: TailraceError) -> None:
        if self._failure is None:
            self._failure = error
        self._begin_purge()

    def _begin_purge(self) -> asyncio.Task[None]:
        if self._purge is None:
            self._purge = self._tasks.start(self._end(), "tailrace-bulk-end")
            self._told.notify()
        return self._purge

    async def _end(self) -> None:
        """Stop everything, wait for a commit that runs, and purge unless it has committed."""
        self._idle.cancel()
        await cancel_and_wait(*self._moving)
        self._valid.clear()
        self._arrived.clear()
        if self._commit is not None:
            await asyncio.wait((self._commit,))
            if not self._commit.cancelled() and self._commit.exception() is None:
                self._ended(self, Outcome.COMMITTED)
                return
        try:
            await self._sink.rollback(self._id)
        except TailraceError as error:
            # The sweeper purges what is left.
            logger.warning("a bulk could not be purged; it is later: %s", error, extra={"bulk": self._id})
        finally:
            self._ended(self, self._outcome())

    def _outcome(self) -> Outcome:
        if self._failure is None:
            return Outcome.CANCELLED
        return Outcome.REFUSED if isinstance(self._failure, BulkRefused) else Outcome.FAILED

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _counted(size: int, records: int) -> int:
    """Return what records of ``size`` bytes in all count for in the window."""
    return size + RECORD_OVERHEAD * records


def _sizes(batch: RecordBatch, first: int) -> Sequence[int]:
    """Return the bytes of each record, data and key.

    Raises:
        BulkRefused: A key is none; ``first`` is the number of the first record in the bulk.
    """
    sizes = list(map(len, batch.data))
    for index, key in enumerate(batch.keys):
        if key is None:
            continue
        # What is no text at all, half of a surrogate pair, has no bytes of UTF-8 either.
        length = len(key.encode(errors="ignore"))
        if not 1 <= length <= MAX_KEY_SIZE or (not key.isascii() and key.encode(errors="ignore").decode() != key):
            problem = f"a key is text of 1 to {MAX_KEY_SIZE} bytes"
            found = RecordProblem(index=first + index, kind=ProblemKind.INVALID, field=None, problem=problem)
            raise refused_records([found], 1)
        sizes[index] += length
    return sizes
