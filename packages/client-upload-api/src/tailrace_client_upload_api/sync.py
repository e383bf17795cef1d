"""The same interfaces for blocking code: a façade over the asynchronous ones.

The names are those of the asynchronous interfaces, and so are guarantees and errors. Everything runs in one event loop
in another thread, behind a portal. Objects may be used from any thread; one thread at a time writes to one upload.
"""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from tailrace_client_upload_api import _client as asynchronous
from tailrace_client_upload_api._blocking_bulk import BulkClient, BulkUpload
from tailrace_client_upload_api._client import WAIT, Buffer, ReopenRequest, UploadRequest, WhileAway
from tailrace_common_api import KIBIBYTE, Checkpoint, Limits, Status, TailraceError, Visibility
from tailrace_common_api.blocking import BlockingIterator, Portal, call, call_plain

__all__ = ["BulkClient", "BulkUpload", "UploadClient", "UploadSession"]

# Writes below this size are copied and gathered while the loop is busy with the ones before; larger ones are worth a
# thread switch each, and are not copied.
_SMALL = 32 * KIBIBYTE
# Bytes that may be gathered; small beside the window of an upload.
_MOST_GATHERED = 256 * KIBIBYTE


class _Gatherer:
    """Carries small writes into the loop, as few at a time as the loop takes, as many as came meanwhile.

    The loop's thread writes ``handed_over``, ``sleeping`` and ``error``, the writer's thread writes ``gathered`` and
    ``waiting``, and each looks at the other's again after it has announced its own: so neither needs a lock, and the
    loop never waits for a thread.
    """

    def __init__(self, session: asynchronous.UploadSession) -> None:
        self._session = session
        self._pieces: deque[bytes] = deque()
        self._signals: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._gathered = 0
        self._handed_over = 0
        self._waiting = False
        self._sleeping = False
        self._begun = False
        self.stopped = False
        self._ended = False
        self._error: BaseException | None = None
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def pending(self) -> int:
        """Bytes that were written and not handed over."""
        return self._gathered - self._handed_over

    async def run(self) -> None:
        """Hand over what is gathered until :meth:`stop`, or until the upload ends; a task in the loop.

        Does nothing where that was begun before.
        """
        if self._begun:
            return
        self._begun = True
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                if self._pieces:
                    await self._hand_over()
                    continue
                self._wake.clear()
                self._sleeping = True
                if not self._pieces:
                    if self.stopped:
                        return
                    await self._wake.wait()
                self._sleeping = False
        except Exception as error:  # noqa: BLE001 - raised by the next call of the writer
            self._error = error
        finally:
            self._ended = True
            self._signals.put(None)

    async def _hand_over(self) -> None:
        pieces = []
        with suppress(IndexError):
            while True:
                pieces.append(self._pieces.popleft())
        data = b"".join(pieces)
        await self._session.write(data)
        self._handed_over += len(data)
        if self._waiting:
            self._waiting = False
            self._signals.put(None)

    def write(self, data: Buffer) -> None:
        """Gather bytes; waits while too many are gathered. Called by the writer."""
        self.wait(_MOST_GATHERED)
        piece = bytes(data)
        self._gathered += len(piece)
        self._pieces.append(piece)
        self._notify()

    def wait(self, most: int) -> None:
        """Wait until at most ``most`` bytes are gathered.

        Raises:
            BaseException: What ended the upload.
        """
        while self._holds_more_than(most):
            self._waiting = True
            if self._holds_more_than(most):
                if self._ended:
                    raise RuntimeError("the event loop ended")
                self._signals.get()
        if self._error is not None:
            raise self._error

    def _holds_more_than(self, most: int) -> bool:
        return self._error is None and not self.stopped and self.pending > most

    def stop(self) -> None:
        """Drop what is gathered and end the task, without waiting for it; what waits returns."""
        self.stopped = True
        self._pieces.clear()
        self._notify()

    def _notify(self) -> None:
        if self._sleeping and self._loop is not None:
            with suppress(RuntimeError):  # The loop is closed.
                self._loop.call_soon_threadsafe(self._wake.set)


class UploadSession:
    """An open upload, for blocking code; see :class:`tailrace_client_upload_api.UploadSession`.

    Entering the context manager opens the upload, leaving it normally completes it, and leaving it with an exception
    (``KeyboardInterrupt`` too) aborts it with that reason.
    """

    def __init__(self, portal: Portal, session: asynchronous.UploadSession) -> None:
        self._portal = portal
        self._session = session
        self._gatherer = _Gatherer(session)
        self._gathering = False

    @property
    def reference(self) -> str:
        """Reference of the resource: it can be handed out as soon as the upload is open."""
        return self._session.reference

    @property
    def id(self) -> str:
        """Resource id."""
        return self._session.id

    @property
    def token(self) -> str:
        """Token that opens this upload again. A secret."""
        return self._session.token

    @property
    def epoch(self) -> int:
        """Epoch of this session; the next one has a higher one."""
        return self._session.epoch

    @property
    def limits(self) -> Limits:
        """What the server accepts."""
        return self._session.limits

    @property
    def offset(self) -> int:
        """Bytes of the resource that were handed to :meth:`write`, or were there when the session opened."""
        return self._session.offset + self._gatherer.pending

    @property
    def announced(self) -> Checkpoint:
        """The last announced checkpoint: what lies below it need not be kept."""
        return self._session.announced

    @property
    def status(self) -> Status:
        """The last status that the server sent: the one of the opening, or the final one."""
        return self._session.status

    def open(self) -> None:
        """Open the upload; called by ``__enter__``, and harmless when it is open."""
        call(self._portal, self._session.open)

    def write(self, data: Buffer) -> None:
        """Append bytes; waits only while the granted window is used up.

        Small writes are gathered and cost no thread switch of their own, so the error that ends the upload may be
        raised by a later call than the write that it concerns.

        Args:
            data: Bytes to append; may be changed once this returns.

        Raises:
            TailraceError: The upload has ended: the server's error, or ``ConnectionLost``.
        """
        if memoryview(data).nbytes >= _SMALL or self._gatherer.stopped:
            self._drain()
            call(self._portal, self._session.write, data)
            return
        if not self._gathering:
            # An interruption leaves open whether it was started. To start it twice is harmless.
            self._portal.start_task_soon(self._gatherer.run)
            self._gathering = True
        self._gatherer.write(data)

    def flush(self) -> Checkpoint:
        """Wait until everything written before is announced, and return the checkpoint."""
        self._drain()
        return call(self._portal, self._session.flush)

    def finish(self) -> Status:
        """Complete the upload and return the final status; repeating it returns the same status."""
        self._drain()
        status = call(self._portal, self._session.finish)
        self._gatherer.stop()
        return status

    def abort(self, reason: str = "aborted by the client") -> Status | None:
        """End the upload as FAILED with ``reason``; harmless when it has ended already."""
        self._gatherer.stop()
        return call(self._portal, self._session.abort, reason)

    def checkpoints(self) -> BlockingIterator[Checkpoint]:
        """Yield the announced checkpoint whenever it changed, latest wins; ends when the upload is complete."""
        return BlockingIterator(self._portal, self._session.checkpoints())

    @property
    def interruption(self) -> TailraceError | None:
        """Why there is no connection at the moment, while the session tries to come back; else ``None``."""
        return self._session.interruption

    def interruptions(self) -> BlockingIterator[TailraceError | None]:
        """Yield :attr:`interruption` whenever it changed, latest wins; ends with the session."""
        return BlockingIterator(self._portal, self._session.interruptions())

    def detach(self) -> None:
        """End the session and leave the upload open: it can be reopened within the server's grace period."""
        self._drain()
        call(self._portal, self._session.detach)
        self._gatherer.stop()

    def send_all(self, source: Iterable[Buffer]) -> int:
        """Write everything that ``source`` yields, as it comes, and return how many bytes that was."""
        total = 0
        for piece in source:
            self.write(piece)
            total += memoryview(piece).nbytes
        return total

    def _drain(self) -> None:
        if self._gathering:
            self._gatherer.wait(0)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if exc is None:
                self._drain()
            else:
                self._gatherer.stop()
            call(self._portal, self._session.__aexit__, exc_type, exc, traceback)
        except BaseException as error:
            # An upload that could not be handed over completely is not left open.
            if exc is None:
                self.abort(f"{type(error).__name__}: {error}")
            raise
        finally:
            self._gatherer.stop()


class UploadClient:
    """Opens uploads, for blocking code; see :class:`tailrace_client_upload_api.UploadClient`."""

    def __init__(self, portal: Portal, client: asynchronous.UploadClient) -> None:
        self._upload_portal = portal
        self._upload_client = client

    def start_upload(self, request: UploadRequest) -> UploadSession:
        """Prepare a new upload; it opens when the session is entered."""
        session = call_plain(self._upload_portal, self._upload_client.start_upload, request)
        return UploadSession(self._upload_portal, session)

    def resume_upload(self, request: ReopenRequest) -> UploadSession:
        """Prepare the continuation of an upload; it opens when the session is entered."""
        session = call_plain(self._upload_portal, self._upload_client.resume_upload, request)
        return UploadSession(self._upload_portal, session)

    def upload(
        self,
        name: str,
        *,
        content_type: str = "application/octet-stream",
        lines: bool = False,
        labels: Mapping[str, str] | None = None,
        context: str | None = None,
        visibility: Visibility = Visibility.LIVE,
        length: int | None = None,
        sha256: bytes | None = None,
        idempotency_key: str | None = None,
        while_away: WhileAway = WAIT,
    ) -> UploadSession:
        """Prepare a new upload; see :class:`Metadata` and :class:`UploadRequest` for the arguments.

        Raises:
            InvalidArgument: A value cannot be accepted.
        """
        session = call_plain(
            self._upload_portal,
            self._upload_client.upload,
            name,
            content_type=content_type,
            lines=lines,
            labels=labels,
            context=context,
            visibility=visibility,
            length=length,
            sha256=sha256,
            idempotency_key=idempotency_key,
            while_away=while_away,
        )
        return UploadSession(self._upload_portal, session)
