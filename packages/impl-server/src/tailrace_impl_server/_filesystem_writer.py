"""The writer of the filesystem storage.

The event loop hands chunks and commands over through one queue, in order; whoever holds the writer's strand works the
queue off: a thread of the pool, or the loop itself for a chunk of usual size when nothing else is pending and the disk
has been quick. Nothing but the queue is shared: ``_hasher``, ``_records``, ``_committed`` and ``_error`` belong to the
holder of the strand, the other attributes to the loop, and flags that one side sets and the other reads are single
assignments.

Order on disk: data, then records, then the slot. With durability ``fsync`` the data is on disk before the journal is
written, and the journal before the size is announced; at the end of a resource, in every mode, data and records are
on disk before the slot is written, and the slot before anyone is told.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from time import perf_counter

from tailrace_common_api import IntegrityError, Overloaded, ResourceState, StorageFailure, StorageFull
from tailrace_impl_common import BlockDigest, HeadHasher, verify_data
from tailrace_impl_server._filesystem_files import ResourceFiles
from tailrace_impl_server._filesystem_recovery import cut_to, shorten_to
from tailrace_impl_server._journal import Slot, cut_reason, pack_records, pack_slot, record_offset, slot_offset
from tailrace_impl_server._positional_io import MAX_BUFFERS, storage_error, sync_data, write_all
from tailrace_impl_server._stalls import Stalls
from tailrace_impl_server._write_back import WriteBack
from tailrace_impl_server._writer_pool import WriterPool
from tailrace_server_api import (
    Buffer,
    Committed,
    Durability,
    Ended,
    FencedOff,
    Outcome,
    ResourceWriter,
    Snapshot,
)

_log = logging.getLogger(__name__)

_GATHERED = 1024 * 1024
"""Bytes that are written with one call where chunks are smaller."""
_SMALL = 8 * 1024
"""Mean size of chunks below which they are joined."""
_SLICE = 4 * 1024 * 1024
"""Bytes after which a thread turns to the next writer in line."""
_WAITING_BYTES = 64 * 1024
"""Most bytes that wait for a flush or a checkpoint to be written."""
_INLINE_BYTES = 1024 * 1024 + _WAITING_BYTES
"""Most bytes that the event loop writes itself, the largest chunk by default behind what may wait: to memory that
takes less than waking a thread, and finds what was received in the processor's cache, three times in a row."""
_INLINE_SECONDS = 0.001
"""Time that an inline write may take, over the last ones and if it is small, before the next ones go to a thread."""
_INLINE_SECONDS_PER_BYTE = 0.003 / 1024 / 1024
"""What one of them may take longer for its size: a processor that others want, too, holds one of many up."""
_INLINE_WEIGHT = 0.125
"""Part that the newest write has in what the last ones took."""
_INLINE_PAUSE = 64
"""Calls that go to a thread after an inline write was slow."""
_STALL_SECONDS = 0.01
"""Time for which only a disk that cannot keep up holds a write: four times as many calls then go to a thread."""
_LONGEST_PAUSE = 4096
"""Most calls that go to a thread before the loop tries again."""
_WRITE_BACK_LEAST = 1024 * 1024
"""Fewest bytes that are worth a request to bring them to disk early, and the most of a small resource."""
_WRITE_BACK_MOST = 2 * 1024 * 1024
"""Bytes between two such requests for a large resource."""
_WRITE_BACK_GRID = 64 * 1024
"""Requests end at multiples of this: a page on its way to disk may make whoever writes to it wait."""


CLOSE_TIMEOUT = 30.0
"""Longest time that closing a writer waits for the disk, in seconds."""


class _Kind(enum.Enum):
    FLUSH = enum.auto()
    CHECKPOINT = enum.auto()
    COMPLETE = enum.auto()
    FAIL = enum.auto()
    CLOSE = enum.auto()


class _Command:
    """What the loop waits for, behind the chunks that were handed over before it."""

    __slots__ = ("future", "kind", "reason")

    def __init__(self, kind: _Kind, future: asyncio.Future[int | Outcome], reason: str = "") -> None:
        self.kind = kind
        self.future = future
        self.reason = reason


class FilesystemWriter(ResourceWriter):
    """Writes one resource under one epoch; made by the storage, which has recovered the resource before."""

    def __init__(
        self,
        *,
        files: ResourceFiles,
        slot: Slot,
        hasher: HeadHasher,
        line_access: bool,
        durability: Durability,
        pool: WriterPool,
        write_back: WriteBack,
        stalls: Stalls,
        sync_names: Callable[[], None],
        on_close: Callable[[FilesystemWriter], None],
        clock: Callable[[], float] = perf_counter,
        close_timeout: float = CLOSE_TIMEOUT,
    ) -> None:
        """Continue behind what is stored.

        Args:
            files: Writable files, cut to ``slot``.
            slot: The announced state, with the epoch of this writer.
            hasher: Stands at the size of ``slot``.
            line_access: Whether newlines are counted.
            durability: What an announced byte survives.
            pool: Threads that write.
            write_back: Begins to bring to disk what a sync will wait for later.
            stalls: What other writers have met.
            sync_names: Waits until the names of the resource are on disk; blocking.
            on_close: Called on the event loop when the writer is closed.
            clock: Time in seconds, for judging how long inline writes take.
            close_timeout: Longest time that closing waits for the disk, in seconds.
        """
        self._loop = asyncio.get_running_loop()
        self._files: ResourceFiles | None = files
        self._folder_name = files.folder.name
        self._line_access = line_access
        self._sync = durability is Durability.FSYNC
        self._sync_names = sync_names
        self._on_close = on_close
        self._clock = clock
        self._close_timeout = close_timeout
        self._queue: deque[tuple[Buffer, bytes | None] | _Command] = deque()
        self._strand = pool.strand(self)
        self._write_back = write_back
        self._stalls = stalls
        self._own_stall = 0.0

        self._snapshot = slot.snapshot
        self._handed_over = slot.snapshot.size
        self._pause = 0
        self._next_pause = _INLINE_PAUSE
        self._inline_mean = 0.0
        self._waiting = 0
        self._fenced: int | None = None
        self._dropping = False
        self._closing: asyncio.Future[int | Outcome] | None = None

        self._hasher = hasher
        self._stored = slot.snapshot.size
        self._begun = self._stored - self._stored % _WRITE_BACK_GRID
        self._records: list[BlockDigest] = []
        self._committed = slot
        self._error: IntegrityError | StorageFull | StorageFailure | Overloaded | None = None
        self._error_told = False
        self._lost = False
        self.doubtful = False
        """Whether announced bytes may be missing on disk although the system holds them; final once this is closed."""

    # The loop's side.

    @property
    def epoch(self) -> int:
        return self._snapshot.epoch

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    @property
    def stored(self) -> int:
        return self._stored

    @property
    def committed(self) -> Slot:
        """The last state that is in the journal; reaches at least to what was announced."""
        return self._committed

    @property
    def files(self) -> ResourceFiles | None:
        """The open files, which may be shared for reading; ``None`` once the writer is closed."""
        return self._files

    def append(self, data: Buffer, *, hash: bytes | None = None) -> None:
        if self._dropping:
            return
        self._queue.append((data, hash))
        self._handed_over += len(data)
        if self._handed_over - self._stored <= _WAITING_BYTES:
            if self._sync or self._pause:
                self._strand.wake()
        elif self._claim_inline():
            try:
                self._work_inline()
            finally:
                self._strand.release()
        else:
            self._strand.wake()

    async def flush(self) -> int:
        if self._dropping or self._handed_over == self._stored:
            return self._stored
        if self._claim_inline():
            try:
                self._work_inline()
                return self._flushed()
            finally:
                self._strand.release()
        stored = await self._submit(_Kind.FLUSH)
        assert isinstance(stored, int)
        return stored

    async def checkpoint(self) -> Outcome:
        if self._claim_inline():
            try:
                self._work_inline()
                outcome = self._checkpointed()
            finally:
                self._strand.release()
            if isinstance(outcome, Committed):
                self._snapshot = outcome.snapshot
            return outcome
        return await self._decide(_Kind.CHECKPOINT)

    async def complete(self) -> Outcome:
        return await self._decide(_Kind.COMPLETE)

    async def fail(self, reason: str) -> Outcome:
        self._dropping = True
        return await self._decide(_Kind.FAIL, cut_reason(reason))

    async def close(self) -> None:
        self._dropping = True
        if self._closing is None:
            self._closing = self._loop.create_future()
            self._queue.append(_Command(_Kind.CLOSE, self._closing))
            self._waiting += 1
            self._strand.wake()
        done, _ = await asyncio.wait((self._closing,), timeout=self._close_timeout)
        if not done:
            # Whoever waits on the disk cannot be stopped; but nobody needs to wait for it for ever.
            _log.error("The disk does not answer: the writer of %s is left behind", self._folder_name)

    def fence(self, epoch: int) -> None:
        """Store and announce nothing any more, since a writer of ``epoch`` takes over; what has begun still ends."""
        if self._fenced is None:
            self._fenced = epoch
        self._dropping = True

    def _claim_inline(self) -> bool:
        """Take the strand if the loop may write what is pending itself."""
        if self._pause:
            self._pause -= 1
            return False
        if self._sync or self._waiting or self._dropping or self._handed_over - self._stored > _INLINE_BYTES:
            return False
        stalled = self._stalls.until
        if stalled and stalled != self._own_stall and self._clock() < stalled:
            return False
        return self._strand.claim()

    def _work_inline(self) -> None:
        size = self._handed_over - self._stored
        allowed = _INLINE_SECONDS + size * _INLINE_SECONDS_PER_BYTE
        started = self._clock()
        self.run()
        ended = self._clock()
        taken = ended - started
        if size:
            self._inline_mean += (taken - self._inline_mean) * _INLINE_WEIGHT
        if taken >= _STALL_SECONDS:
            self._own_stall = self._stalls.note(ended, taken)
            self._next_pause = min(4 * self._next_pause, _LONGEST_PAUSE)
        elif taken < allowed and self._inline_mean < _INLINE_SECONDS:
            self._next_pause = max(_INLINE_PAUSE, self._next_pause - 1)
            return
        # The first one behind the pause decides whether there is another.
        self._inline_mean = min(self._inline_mean, _INLINE_SECONDS)
        self._pause = self._next_pause

    async def _decide(self, kind: _Kind, reason: str = "") -> Outcome:
        if self._closing is not None:
            # Nothing is worked off behind the closing, and the answer is known.
            return self._refusal() or self._closed()
        outcome = await self._submit(kind, reason)
        assert not isinstance(outcome, int)
        return outcome

    def _closed(self) -> Outcome:
        raise StorageFailure("the writer is closed")

    async def _submit(self, kind: _Kind, reason: str = "") -> int | Outcome:
        future: asyncio.Future[int | Outcome] = self._loop.create_future()
        self._queue.append(_Command(kind, future, reason))
        self._waiting += 1
        self._strand.wake()
        return await future

    def _deliver(self, command: _Command, result: int | Outcome | Exception) -> None:
        if isinstance(result, Committed):
            self._snapshot = result.snapshot
        self._waiting -= 1
        if command.kind is _Kind.CLOSE:
            self._on_close(self)
        # Who asked may have been cancelled meanwhile.
        if command.future.done():
            return
        if isinstance(result, Exception):
            command.future.set_exception(result)
        else:
            command.future.set_result(result)

    # The side of whoever holds the strand.

    def pending(self) -> bool:
        return bool(self._queue)

    def run(self) -> None:
        """Work off the queue, up to a slice of it."""
        batch: list[tuple[Buffer, bytes | None]] = []
        gathered = done = 0
        while self._queue and done < _SLICE:
            entry = self._queue.popleft()
            if isinstance(entry, _Command):
                self._store(batch)
                batch.clear()
                gathered = 0
                self._execute(entry)
                continue
            batch.append(entry)
            gathered += len(entry[0])
            done += len(entry[0])
            if gathered >= _GATHERED or len(batch) == MAX_BUFFERS:
                self._store(batch)
                batch.clear()
                gathered = 0
        self._store(batch)

    def _store(self, batch: list[tuple[Buffer, bytes | None]]) -> None:
        """Check, hash and write chunks; the first error is kept and ends all storing."""
        if not batch:
            return
        if self._error is not None or self._dropping or self._files is None or self._committed.snapshot.state.terminal:
            self._lost = True
            return
        try:
            self._error = self._store_proven(batch, self._files)
        except OSError as error:
            self._error = storage_error(error, "store bytes")
        except Exception as error:  # noqa: BLE001 - nothing may be stored behind bytes that are missing.
            _log.exception("a writer failed unexpectedly")
            self._error = StorageFailure(f"storing failed: {error!r}")

    def _store_proven(self, batch: list[tuple[Buffer, bytes | None]], files: ResourceFiles) -> IntegrityError | None:
        """Store chunks up to the first that does not have its hash, and return the error for that one.

        Raises:
            OSError: They cannot be written.
        """
        offset = end = self._stored
        # One pass over joined bytes costs less than several calls for each of many lines.
        joined = len(batch) > 1 and sum(len(data) for data, _ in batch) <= len(batch) * _SMALL
        proven: list[Buffer] = []
        completed: list[BlockDigest] = []
        mismatch = None
        for data, expected in batch:
            try:
                if joined:
                    if expected is not None:
                        verify_data(data, expected, end)
                elif expected is None:
                    completed += self._hasher.update(data)
                else:
                    completed += self._hasher.update_verified(data, expected)
            except IntegrityError as error:
                mismatch = error
                break
            proven.append(data)
            end += len(data)
        if proven:
            if joined:
                proven = [b"".join(proven)]
                completed += self._hasher.update(proven[0])
            write_all(files.data, proven, offset)
            # The bytes were hashed before writing took what else is in the processor's cache. Where writing has failed
            # the hasher is ahead of what is stored, and nobody asks it any more: nothing is committed behind such an
            # error but the end of what was committed before.
            self._records += completed
            self._stored = end
            if not self._sync and end - self._begun >= _WRITE_BACK_LEAST:
                self._begin_write_back(files, end)
        return mismatch

    def _begin_write_back(self, files: ResourceFiles, end: int) -> None:
        """Have what is stored brought to disk while more arrives, in steps that grow with the resource."""
        if end - self._begun < min(end // 8, _WRITE_BACK_MOST):
            return
        end -= end % _WRITE_BACK_GRID
        if self._write_back.begin(files, self._begun, end):
            self._begun = end

    def _execute(self, command: _Command) -> None:
        result: int | Outcome | Exception
        try:
            if command.kind is _Kind.FLUSH:
                result = self._flushed()
            elif command.kind is _Kind.CHECKPOINT:
                result = self._checkpointed()
            elif command.kind is _Kind.COMPLETE:
                result = self._completed()
            elif command.kind is _Kind.FAIL:
                result = self._failed(command.reason)
            else:
                self._files = None
                result = self._stored
        except (IntegrityError, StorageFull, StorageFailure, Overloaded) as error:
            result = error
        except Exception as error:  # noqa: BLE001 - whoever waits must be told of any defect.
            _log.exception("a writer failed unexpectedly")
            result = self._error = StorageFailure(f"storing failed: {error!r}")
        try:
            self._loop.call_soon_threadsafe(self._deliver, command, result)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            _log.debug("the event loop of a writer is closed")

    def _refusal(self) -> FencedOff | Ended | None:
        """Return why nothing may be committed."""
        if self._committed.snapshot.state.terminal:
            return Ended(self._committed.snapshot)
        if self._fenced is not None:
            return FencedOff(self._fenced)
        return None

    def _flushed(self) -> int:
        if self._error is not None and not self._dropping:
            self._error_told = True
            raise self._error
        return self._stored

    def _checkpointed(self) -> Outcome:
        if refusal := self._refusal():
            return refusal
        if self._error is not None and not (self._error_told and isinstance(self._error, IntegrityError)):
            self._error_told = True
            raise self._error
        if self._stored == self._committed.snapshot.size:
            return Committed(self._committed.snapshot)
        return self._commit(self._slot_at_end(ResourceState.IN_PROGRESS))

    def _completed(self) -> Outcome:
        if refusal := self._refusal():
            return refusal
        if self._error is not None:
            self._error_told = True
            raise self._error
        if self._lost:
            # Dropped by a later failing or closing, while this call stood in the queue.
            raise StorageFailure("bytes that belong to the resource were dropped")
        return self._commit(self._slot_at_end(ResourceState.COMPLETED))

    def _failed(self, reason: str) -> Outcome:
        if refusal := self._refusal():
            return refusal
        if self._error is None or isinstance(self._error, IntegrityError):
            return self._commit(self._slot_at_end(ResourceState.FAILED, reason))
        # The disk does not take more: the resource ends at its announced size, for which only the slot is written anew.
        snapshot = replace(
            self._committed.snapshot,
            version=self._committed.snapshot.version + 1,
            state=ResourceState.FAILED,
            reason=reason,
        )
        self._records.clear()
        return self._commit(replace(self._committed, snapshot=snapshot), cut=True)

    def _slot_at_end(self, state: ResourceState, reason: str | None = None) -> Slot:
        before = self._committed
        hasher = self._hasher
        open_digest = hasher.open_digest()
        snapshot = Snapshot(
            version=before.snapshot.version + 1,
            epoch=before.snapshot.epoch,
            state=state,
            reason=reason,
            size=hasher.size,
            newlines=hasher.newlines,
            head=hasher.head(),
            open_line=self._line_access and hasher.size > 0 and not hasher.ends_with_newline,
        )
        return Slot(snapshot, hasher.spine, open_digest, before.boot_id, self._sync)

    def _commit(self, slot: Slot, *, cut: bool = False) -> Committed:
        """Write the records of all blocks since the last commit, then the slot."""
        files = self._files
        assert files is not None
        terminal = slot.snapshot.state.terminal
        try:
            if cut:
                cut_to(files, slot, sync=False)
            if terminal or self._sync:
                self._sync_file(files, files.data, slot)
            if self._records:
                write_all(files.journal, [pack_records(self._records)], record_offset(self._records[0].number))
            if terminal:
                self._sync_file(files, files.journal, slot)
                self._sync_names()
            write_all(files.journal, [pack_slot(slot)], slot_offset(slot.snapshot.version))
            if terminal or self._sync:
                self._sync_file(files, files.journal, slot)
            if terminal:
                # In both places, so that one damaged sector does not cost the end. It is told already if this fails.
                with suppress(OSError):
                    write_all(files.journal, [pack_slot(slot)], slot_offset(slot.snapshot.version + 1))
        except OSError as error:
            self._error = storage_error(error, "write the journal")
            raise self._error from error
        self._records.clear()
        self._committed = files.slot = slot
        return Committed(slot.snapshot)

    def _sync_file(self, files: ResourceFiles, fd: int, slot: Slot) -> None:
        """Wait for the disk; when it fails, make the files say what they said before ``slot``.

        After a failed sync the system takes pages for clean that never reached the disk, and the next sync succeeds
        without them. So nothing that it was to bring to disk may count: it is cut off and overwritten, which is what a
        reopening finds, in this process or in another.
        """
        try:
            sync_data(fd)
        except OSError:
            # Where announced bytes were not on disk before, the failure may have been theirs.
            self.doubtful = not self._committed.synced
            try:
                shorten_to(files, self._committed)
                write_all(files.journal, [pack_slot(self._committed)], slot_offset(slot.snapshot.version))
            except OSError:
                _log.exception("what a failed sync has left of %s cannot be cut off", self._folder_name)
                self.doubtful = True
            raise
