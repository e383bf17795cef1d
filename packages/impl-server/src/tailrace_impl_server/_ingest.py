"""One session of an upload: what arrives is stored, announced, and in the end completed or not."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import time
from dataclasses import dataclass

from tailrace_common_api import (
    MAX_OFFSET,
    AlreadyTerminal,
    Checkpoint,
    Deleted,
    DigestMismatch,
    Fenced,
    IntegrityError,
    InternalError,
    LengthMismatch,
    NotFound,
    ProtocolError,
    QuotaExceeded,
    ResourceState,
    Status,
    StorageFailure,
    StorageFull,
    TailraceError,
    Visibility,
)
from tailrace_impl_server._digest import ContentDigest
from tailrace_impl_server._live_resource import LiveResource
from tailrace_impl_server._quotas import RESOURCE_BYTES, Charge
from tailrace_impl_server._session_host import SessionHost
from tailrace_server_api import (
    Buffer,
    Committed,
    Conflict,
    Ended,
    FencedOff,
    Outcome,
    Progress,
    ResourceWriter,
    Snapshot,
    UploadIngest,
)

logger = logging.getLogger(__name__)

_MANY = 64 * 1024
"""Bytes from which on announcements are paced."""
_PACE = 0.004
"""Least time between two announcements of that many bytes while more of them arrive, in seconds: each of them is a
write to the journal and a message to the uploader and to every follower, which costs as much as the bytes of a
chunk."""
_LULL = 0.001
"""Time without new bytes after which they are announced, and the window is renewed, as if no more were to come."""
_LONG_LULL = 20
"""Lulls after which a window without room for a chunk is renewed: an uploader that cuts none may be waiting for it."""


@dataclass(slots=True)
class _Finish:
    """The uploader says that it has sent everything."""

    size: int
    head: bytes


@dataclass(slots=True)
class _Abort:
    """The uploader gives up, or has broken what it declared: then ``error`` says how."""

    reason: str
    error: TailraceError | None = None


class UploadSession(UploadIngest):
    """A session and its pump: the one task that uses the writer.

    Whoever ends the session tells the pump how and waits for it, so every change of the resource has one place and one
    order, and goes on when the caller is cancelled:

    ====================  =====================================================================
    ended by              the pump then
    ====================  =====================================================================
    ``finish``            announces what is left, compares, completes (or fails the resource)
    ``abort``             fails the resource; an atomic one is deleted
    ``release``, fencing  announces what is left
    shutdown              the same
    a closed context,     fails the resource; an atomic one is deleted
    a veto
    deletion              does nothing more
    an error of its own   does nothing more; chunks before a bad one are announced
    ====================  =====================================================================

    The first of them counts. A session whose resource has not ended begins the grace period.
    """

    def __init__(
        self, live: LiveResource, writer: ResourceWriter, token: str, host: SessionHost, charge: Charge
    ) -> None:
        """Begin at the writer's size; ``charge`` is the upload's part of the quotas."""
        self.live = live
        """The resource; one use of it belongs to the session until it ends."""
        self._writer = writer
        self._token = token
        self._host = host
        self._charge = charge
        settings = host.settings
        self._interval = settings.checkpoint_interval
        self._max_size = settings.max_resource_size
        # One byte more is granted than is taken: an uploader with too much is refused instead of waiting for ever.
        self._last_grant = min(self._max_size + 1, MAX_OFFSET)
        charge.open(writer.snapshot.size, self._renew_window)
        self._length = live.descriptor.length
        self._pieces = live.pieces
        self._loop = asyncio.get_running_loop()
        self._start = self._submitted = self._flushed = self._made_room = writer.snapshot.size
        self._until = writer.snapshot.size
        self._grant(writer.snapshot.size, 0)
        self._progress = Progress(self._until, writer.snapshot.checkpoint)
        self._due = self._paced = self._arrived = 0.0
        self._work: asyncio.Future[None] | None = None
        # Whether the pump looks again within a lull, and only much is worth waking it before.
        self._resting = False
        self._watchers: set[asyncio.Future[None]] = set()
        self._request: _Finish | _Abort | None = None
        # What ``finish`` or ``abort`` asked for and got; an error that came meanwhile does not undo it.
        self._result: Status | None = None
        self._stopping = False
        self._error: TailraceError | None = None
        self._digest = ContentDigest(live) if live.descriptor.sha256 is not None else None
        self._pump = host.spawn(self._run(), f"tailrace-upload-{live.id}")

    @property
    def id(self) -> str:
        return self.live.id

    @property
    def epoch(self) -> int:
        """Epoch under which the session writes."""
        return self._writer.epoch

    @property
    def token(self) -> str:
        return self._token

    @property
    def snapshot(self) -> Snapshot:
        return self.live.snapshot

    @property
    def progress(self) -> Progress:
        return self._progress

    def status(self) -> Status:
        return self.live.status()

    def submit(self, data: Buffer, *, hash: bytes) -> None:
        if self._error is not None:
            raise copy.copy(self._error)
        if self._request is not None or self._stopping:
            raise ProtocolError("data behind the end of the upload")
        offset = self._submitted
        end = offset + len(data)
        if self._length is not None and end > self._length:
            error = LengthMismatch(declared=self._length, actual=end)
            self._request = _Abort(error.message, error)
            self._wake()
            raise copy.copy(error)
        try:
            if end > self._max_size:
                raise QuotaExceeded(limit=RESOURCE_BYTES, maximum=self._max_size, actual=end)
            if end > self._until:
                raise ProtocolError(f"bytes [{offset}, {end}) overdraw the window, which ends at offset {self._until}")
            self._charge.take(end)
        except QuotaExceeded as error:
            self._host.refused(self.live, error)
            raise
        self._writer.append(data, hash=hash)
        now = self._arrived = self._loop.time()
        tail = self._pieces.tail
        if self._pieces.readers or self._digest is not None:
            tail.append(offset, data, hash, now)
        elif tail.used:
            # Whoever comes finds it in the storage. Memory that is free again at once is still in the processor's
            # cache when the next chunk arrives in it.
            tail.clear()
        self._submitted = end
        half = self._host.window() // 2
        self._renew_window(half)
        if (
            not self._resting
            or end - self._progress.checkpoint.size >= 2 * half
            or (end - self._flushed >= half and self._writer.stored < end)
        ):
            self._wake()

    async def changed(self, known: Progress) -> Progress:
        while True:
            if self._error is not None:
                raise copy.copy(self._error)
            if self._progress != known:
                return self._progress
            watcher: asyncio.Future[None] = self._loop.create_future()
            self._watchers.add(watcher)
            try:
                await watcher
            finally:
                self._watchers.discard(watcher)

    async def finish(self, *, size: int, head: bytes) -> Status:
        result = await self._end_with(_Finish(size, head))
        assert result is not None
        return result

    async def abort(self, reason: str) -> Status | None:
        return await self._end_with(_Abort(reason))

    async def release(self) -> None:
        self._stopping = True
        self._wake()
        await self.ended()

    def end(self, error: TailraceError) -> None:
        """End the session from outside: whoever waits for it gets ``error`` at once."""
        self._fail(error)
        self._stopping = True
        self._wake()

    def fence(self) -> None:
        """End the session because a newer one takes over."""
        self.end(Fenced(epoch=self.epoch))

    def terminate(self, reason: str, error: TailraceError) -> None:
        """End the upload as FAILED, unless it is being completed; whoever waits for the session gets ``error``."""
        if self._request is None:
            self._request = _Abort(reason)
        self.end(error)

    async def ended(self) -> None:
        """Wait until the pump has ended; cancelling the wait does not stop it."""
        # Not for a turn of the loop where it has: a client that has its result may leave meanwhile, and what was
        # completed would count as cancelled.
        if not self._pump.done():
            await asyncio.wait((self._pump,))

    async def _end_with(self, request: _Finish | _Abort) -> Status | None:
        if self._error is not None:
            raise copy.copy(self._error)
        if self._request is not None or self._stopping:
            raise ProtocolError("the session has ended")
        self._request = request
        self._wake()
        await self.ended()
        if self._result is None and self._error is not None:
            raise copy.copy(self._error)
        return self._result

    # The pump.

    async def _run(self) -> None:
        try:
            try:
                await self._store_until_asked_to_end()
            except TailraceError:
                # An abort fails the resource all the same.
                if not isinstance(self._request, _Abort):
                    raise
            await self._end()
        except NotFound:
            self._fail(Deleted(id=self.id))
        except TailraceError as error:
            if isinstance(error, StorageFull | StorageFailure):
                logger.warning("an upload cannot be stored: %s", error, extra={"resource": self.id})
            self._fail(error)
        except Exception:
            logger.exception("an upload failed unexpectedly", extra={"resource": self.id})
            self._fail(InternalError("the upload failed; the server's log says why"))
        finally:
            try:
                await self._close()
            finally:
                self._charge.settle(self.live.snapshot.size)
                self._host.session_ended(self)

    async def _store_until_asked_to_end(self) -> None:
        while self._request is None and not self._stopping:
            announced = self._progress.checkpoint.size
            now = self._loop.time()
            room = self._room_due()
            if now >= room:
                await self._make_room()
                continue
            if announced == self._submitted:
                await self._wait_for_work(room - now)
                continue
            due = self._announcement_due(self._submitted - announced)
            lull = self._arrived + _LULL
            step = self._host.window() // (2 if now < lull else 4)
            if now >= due:
                self._due, self._paced = now + self._interval, now + _PACE
                await self._announce()
            elif self._submitted - self._flushed >= step and self._writer.stored < self._submitted:
                # Only then is there a window to renew: the writer stores what it has without being asked.
                await self._store(step)
            else:
                # It may have been stored in a thread since it was submitted.
                self._renew_window(step)
                # The trailing edge: whatever else comes or does not come, the last bytes show when this time is up.
                self._resting = now < lull and self._submitted - announced >= _MANY
                await self._wait_for_work(min(due, lull if now < lull else room) - now)
                self._resting = False

    def _announcement_due(self, pending: int) -> float:
        """Return when so many bytes are to be announced: a few at once, and not each chunk of many by itself."""
        if pending >= self._host.window():
            return 0.0
        return self._due if pending < _MANY else max(self._due, min(self._paced, self._arrived + _LULL))

    def _room_due(self) -> float:
        """Return when the window is to be renewed because a chunk does not fit into it; once for what has arrived."""
        chunk = self._host.settings.chunk_size
        if self._until - self._submitted >= chunk or self._submitted == self._made_room or chunk > self._host.window():
            return math.inf
        return self._arrived + _LONG_LULL * _LULL

    async def _make_room(self) -> None:
        self._made_room = self._submitted
        if self._writer.stored < self._submitted:
            await self._store(1)
        else:
            self._renew_window(1)

    async def _end(self) -> None:
        request = self._request
        if isinstance(request, _Finish):
            await self._finish(request)
        elif isinstance(request, _Abort):
            await self._fail_resource(request.reason)
            if request.error is not None:
                raise request.error
            self._result = None if self.live.deleted else self.live.status()
        elif not isinstance(self._error, Deleted) and self._progress.checkpoint.size < self._submitted:
            await self._announce()

    async def _finish(self, request: _Finish) -> None:
        if self._progress.checkpoint.size < self._submitted:
            await self._announce()
        end = self._progress.checkpoint
        if request.size != end.size:
            problem = f"the upload ends at offset {request.size}, and {end.size} bytes have arrived"
            raise IntegrityError(offset=end.size, problem=problem)
        error = await self._broken_promise(request, end)
        if error is not None:
            await self._fail_resource(error.message)
            raise error
        await self._publish_end(self._accept(await self._writer.complete()))
        self._result = self.live.status()

    async def _broken_promise(self, request: _Finish, end: Checkpoint) -> TailraceError | None:
        """Return what the uploader said and did not keep."""
        descriptor = self.live.descriptor
        if request.head != end.head:
            problem = f"the head of the {end.size} bytes sent is {request.head.hex()}, of those stored {end.head.hex()}"
            return IntegrityError(offset=self._start, problem=problem)
        if descriptor.length is not None and end.size != descriptor.length:
            return LengthMismatch(declared=descriptor.length, actual=end.size)
        if self._digest is not None:
            assert descriptor.sha256 is not None
            actual = await self._digest.result()
            if actual != descriptor.sha256:
                return DigestMismatch(declared=descriptor.sha256.hex(), actual=actual.hex())
        return None

    async def _fail_resource(self, reason: str) -> None:
        if self.live.descriptor.visibility is Visibility.ATOMIC:
            await self._host.discard(self.live)
            return
        await self._publish_end(self._accept(await self._writer.fail(reason)))

    async def _announce(self) -> None:
        began = time.perf_counter()
        try:
            outcome = await self._writer.checkpoint()
        except TailraceError as error:
            self._host.checkpoint_failed(error)
            if isinstance(error, IntegrityError):
                await self._announce_proven()
            raise
        seconds = time.perf_counter() - began
        try:
            self._publish_growth(self._accept(outcome))
        finally:
            # Who follows does not wait for that.
            self._host.checkpoint_made(seconds)

    async def _store(self, step: int) -> None:
        self._flushed = self._submitted
        try:
            await self._writer.flush()
        except IntegrityError:
            await self._announce_proven()
            raise
        self._renew_window(step)

    async def _announce_proven(self) -> None:
        """Announce the chunks before a bad one: the uploader continues behind them."""
        try:
            self._publish_growth(self._accept(await self._writer.checkpoint()))
        except TailraceError:
            logger.warning("chunks before a bad one were not announced", exc_info=True, extra={"resource": self.id})

    def _accept(self, outcome: Outcome) -> Snapshot:
        """Return what was committed; an outcome of another kind ends the session."""
        match outcome:
            case Committed(snapshot):
                return snapshot
            case FencedOff():
                raise Fenced(epoch=self._writer.epoch)
            case Ended(snapshot):
                self._publish(snapshot)
                raise AlreadyTerminal(id=self.id, state=snapshot.state.value)
            case Conflict(size):
                problem = f"{size} bytes are stored where {self._progress.checkpoint.size} were announced"
                raise StorageFailure(f"the upload cannot be continued by this session: {problem}")

    def _publish_growth(self, snapshot: Snapshot) -> None:
        first = self.live.snapshot.state is ResourceState.INITIATED
        self._publish(snapshot)
        if first and snapshot.state is ResourceState.IN_PROGRESS:
            self._host.spawn(self._host.record_state(self.live, snapshot), f"tailrace-record-{self.id}")
        self._host.grown(self.live)

    async def _publish_end(self, snapshot: Snapshot) -> None:
        logger.info("ended %s at %d bytes", snapshot.state.value, snapshot.size, extra={"resource": self.id})
        # The catalog first: whoever sees the status finds it in a listing too.
        await self._host.record_state(self.live, snapshot)
        self._publish(snapshot)
        self._host.has_ended(self.live)

    def _publish(self, snapshot: Snapshot) -> None:
        self.live.publish(snapshot)
        self._charge.announce(snapshot.size)
        self._grant(snapshot.size, self._host.window() // 4)
        self._progress = Progress(self._until, snapshot.checkpoint)
        self._wake_watchers()
        self._host.announced(self.id)

    def _renew_window(self, step: int = 0) -> None:
        """Tell the uploader what has become free, if that is worth a message: at least ``step`` bytes."""
        if self._grant(self._progress.checkpoint.size, step or self._host.window() // 4):
            self._progress = Progress(self._until, self._progress.checkpoint)
            self._wake_watchers()

    def _grant(self, announced: int, step: int) -> bool:
        """Grant what has become free, from ``step`` bytes on: a message for every line would be too much.

        A quarter of a window is worth a message; while bytes keep coming, half of one, the other half being on its way.
        That is a window beyond what is stored, but no more than two beyond what is announced: so much the uploader has
        to keep, however slow an announcement is. What is granted is reserved in the quotas, but for the one byte more.
        """
        window = self._host.window()
        wanted = min(self._writer.stored + window, announced + 2 * window, self._last_grant)
        if wanted <= self._until or (wanted - self._until < step and wanted < self._last_grant):
            return False
        until = self._charge.reserve(min(wanted, self._max_size))
        if until == self._max_size:
            until = wanted
        if until <= self._until:
            return False
        self._until = until
        return True

    async def _close(self) -> None:
        if self._digest is not None:
            await self._digest.close()
        try:
            await self._writer.close()
        except TailraceError:
            logger.warning("a writer could not be closed", exc_info=True, extra={"resource": self.id})

    def _fail(self, error: TailraceError) -> None:
        if self._error is None:
            self._error = error
            self._wake_watchers()

    def _wake(self) -> None:
        if self._work is not None and not self._work.done():
            self._work.set_result(None)

    async def _wait_for_work(self, timeout: float) -> None:
        self._work = self._loop.create_future()
        timer = None if timeout == math.inf else self._loop.call_later(timeout, self._wake)
        try:
            await self._work
        finally:
            self._work = None
            if timer is not None:
                timer.cancel()

    def _wake_watchers(self) -> None:
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)
