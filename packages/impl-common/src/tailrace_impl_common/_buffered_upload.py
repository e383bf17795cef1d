"""An upload whose writer need not wait for the server."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from tailrace_client_upload_api import Buffer, DropOldest, SpoolToDisk, UploadSession, WhileAway
from tailrace_common_api import (
    Checkpoint,
    InternalError,
    ResourceState,
    Status,
    StorageFailure,
    StorageFull,
    TailraceError,
    UploadAborted,
)
from tailrace_impl_common._buffers import flat
from tailrace_impl_common._cancelling import cancel_and_wait
from tailrace_impl_common._delegating_upload import DelegatingUpload
from tailrace_impl_common._drop_oldest import DropOldestBytes
from tailrace_impl_common._signal import Signal
from tailrace_impl_common._spool import Spool
from tailrace_impl_common._waiting_bytes import PIECE_SIZE, WaitingBytes

T = TypeVar("T")

_TURN = 64 * 1024
"""Bytes that may be written without waiting before the loop gets a turn: else nothing could ever be sent."""


async def run_to_end(work: Callable[[], T]) -> T:
    """Run blocking work in a thread; when cancelled, wait until it is done all the same.

    What works on a file must have ended before the file is closed.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        task.exception()
        raise cancelled
    return task.result()


def with_policy(session: UploadSession, policy: WhileAway) -> UploadSession:
    """Return ``session`` with what becomes of bytes that the server does not take at the moment."""
    if isinstance(policy, SpoolToDisk):
        return BufferedUpload(session, lambda _: Spool(policy.directory, policy.max_bytes))
    if isinstance(policy, DropOldest):
        return BufferedUpload(session, lambda offset: DropOldestBytes(policy.max_bytes, at_line_start=not offset))
    return session


def local_failure(what: str, error: OSError) -> TailraceError:
    """Return the typed error for a failure of a local disk."""
    failure = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageFailure
    described = failure(f"{what}: {error.strerror or error}")
    described.__cause__ = error
    return described


class BufferedUpload(DelegatingUpload):
    """What is written waits here, and one task hands it to the session inside as fast as that takes it.

    ``write`` waits only where there is no room. ``flush``, ``finish`` and ``detach`` wait for everything that is kept.
    :attr:`offset` counts what waits, as it will be sent: where bytes are dropped it goes back by them.

    A failure of the local disk ends the upload with ``StorageFull`` or ``StorageFailure``.
    """

    def __init__(self, session: UploadSession, make_room: Callable[[int], WaitingBytes]) -> None:
        """Stand in front of ``session``.

        Args:
            session: What sends.
            make_room: Makes where bytes wait, from the offset at which the session opened.
        """
        super().__init__(session)
        self._make_room = make_room
        self._waiting: WaitingBytes | None = None
        # Files are worked on by one thread at a time.
        self._access = asyncio.Lock()
        self._base = 0
        self._taken = 0
        self._in_hand = False
        self._unturned = 0
        self._error: TailraceError | None = None
        self._finishing = False
        self._ended = False
        self._detached = False
        self._work = asyncio.Event()
        self._changed = Signal()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def offset(self) -> int:
        if self._waiting is None or self._ended:
            return self._session.offset
        return self._base + self._taken + self._waiting.size

    async def open(self) -> None:
        if self._waiting is not None:
            return
        await self._session.open()
        if self._session.status.state.terminal:
            self._ended = True
            return
        self._base = self._session.offset
        waiting = self._make_room(self._base)
        try:
            await run_to_end(waiting.open)
        except BaseException as exc:
            waiting.close()
            await self._session.abort("the uploader cannot keep what it writes")
            if isinstance(exc, OSError):
                raise local_failure("the spool cannot be made", exc) from exc
            raise
        self._waiting = waiting
        self._tasks = [
            asyncio.create_task(self._guard(self._pump), name="tailrace upload pump"),
            asyncio.create_task(self._guard(self._watch), name="tailrace upload watch"),
        ]
        if waiting.size:
            self._work.set()

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except TailraceError as error:
            self._fail(error)
        except OSError as error:
            self._fail(local_failure("the spool", error))
        except Exception as error:  # noqa: BLE001 - a defect ends the upload with its cause, and is raised by the next call
            defect = InternalError(f"{type(error).__name__}: {error}")
            defect.__cause__ = error
            self._fail(defect)

    def _fail(self, error: TailraceError) -> None:
        if self._error is None:
            self._error = error
        self._changed.notify()

    async def _pump(self) -> None:
        """Hand over what waits, until cancelled."""
        waiting = self._room()
        while True:
            if not waiting.size:
                self._work.clear()
                await self._work.wait()
                continue
            self._in_hand = True
            data = await self._take(waiting)
            self._changed.notify()
            await self._session.write(data)
            self._in_hand = False
            # Nothing may keep the bytes alive while the next ones are awaited.
            del data
            self._changed.notify()

    async def _take(self, waiting: WaitingBytes) -> bytes:
        async with self._access:
            data = await run_to_end(waiting.take) if waiting.take_blocks else waiting.take()
            self._taken += len(data)
            return data

    async def _watch(self) -> None:
        """Notice at once when the server ends the upload, and let go of what it has announced."""
        waiting = self._room()
        async with aclosing(self._session.checkpoints()) as checkpoints:
            async for checkpoint in checkpoints:
                if waiting.keeps_taken:
                    async with self._access:
                        await run_to_end(partial(waiting.announced, checkpoint.size))
                    self._changed.notify()
        status = self._session.status
        if status.state is ResourceState.FAILED:
            raise UploadAborted(reason=status.reason or "the upload has ended")

    def _room(self) -> WaitingBytes:
        if self._waiting is None:
            raise RuntimeError("the upload is not open; enter it with `async with`")
        return self._waiting

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._ended or self._finishing:
            raise UploadAborted(reason="the upload has ended" if self._ended else "the upload is being completed")

    async def write(self, data: Buffer) -> None:
        self._check()
        self._room()
        view = memoryview(flat(data))
        for start in range(0, len(view), PIECE_SIZE):
            await self._add(view[start : start + PIECE_SIZE])

    async def _add(self, piece: memoryview) -> None:
        waiting = self._room()
        length = len(piece)
        while not waiting.fits(length):
            await self._changed.wait()
            self._check()
        try:
            async with self._access:
                self._check()
                if waiting.add_blocks(length):
                    await run_to_end(partial(waiting.add, piece))
                else:
                    waiting.add(piece)
        except OSError as error:
            self._fail(local_failure("the spool", error))
            self._check()
        self._work.set()
        self._unturned += length
        if self._unturned >= _TURN:
            self._unturned = 0
            await asyncio.sleep(0)

    async def _drain(self) -> None:
        """Wait until nothing waits any more."""
        while self._error is None and not self._ended and (self._in_hand or self._room().size):
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    async def flush(self) -> Checkpoint:
        await self._drain()
        return await self._session.flush()

    async def finish(self) -> Status:
        if self._ended:
            return await self._session.finish()
        self._finishing = True
        try:
            await self._drain()
            status = await self._session.finish()
        except asyncio.CancelledError:
            self._finishing = False
            raise
        except TailraceError:
            await self._end()
            raise
        await self._end()
        return status

    async def abort(self, reason: str = "aborted by the client") -> Status | None:
        await self._end()
        if self._error is None:
            self._error = UploadAborted(reason=reason)
        return await self._session.abort(reason)

    async def detach(self) -> None:
        if self._waiting is None or self._detached or self.status.state.terminal:
            return
        self._detached = True
        try:
            await self._drain()
        except BaseException:
            await self._end()
            # What was handed over is not waited for any more.
            leaving = asyncio.create_task(self._session.detach())
            await asyncio.sleep(0)
            await cancel_and_wait(leaving)
            raise
        await self._end()
        await self._session.detach()

    async def _end(self) -> None:
        """End the tasks and let go of what waits; idempotent."""
        self._ended = True
        try:
            await cancel_and_wait(*self._tasks)
        finally:
            if self._waiting is not None:
                await run_to_end(self._waiting.close)
            self._changed.notify()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._detached:
            return
        if exc is None and self.status.state.terminal:
            # The session inside knows whether that is what was wanted.
            await self._end()
            await self._session.__aexit__(None, None, None)
            return
        await super().__aexit__(exc_type, exc, traceback)
