"""The client's side of an upload, above the transports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from types import TracebackType
from typing import Any

from tailrace_client_upload_api import Buffer, UploadSession
from tailrace_common_api import (
    Checkpoint,
    ClientSettings,
    ConnectionLost,
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    Limits,
    ProtocolError,
    ResourceState,
    SourceChanged,
    Status,
    TailraceError,
    UploadAborted,
)
from tailrace_impl_common._buffers import flat
from tailrace_impl_common._cancelling import cancel_and_wait
from tailrace_impl_common._head import HeadHasher
from tailrace_impl_common._signal import Signal
from tailrace_impl_common._streams import ClientStream, Connection
from tailrace_impl_common._upload_machine import UploadSender, UploadState
from tailrace_impl_common.messages import GetHeads, Heads, Opened, OpenUpload, ReopenUpload

_ABORT_TIMEOUT = 5.0
"""Time for an abort to be sent and acknowledged, in seconds; after it the conversation is cut."""
_REASON_TIMEOUT = 5.0
"""Time that the server's reason may take when sending has failed, in seconds."""
_MOST_SAMPLES = 256
"""Heads of a prefix that are kept to find where it begins to differ."""


class ConnectedUpload(UploadSession):
    """An upload over any transport: one task sends what is written, another takes what the server says."""

    def __init__(
        self,
        connection: Connection,
        request: OpenUpload | ReopenUpload,
        settings: ClientSettings,
        prefix: Callable[[int], AsyncIterable[Buffer]] | None = None,
    ) -> None:
        """Prepare the upload that ``request`` begins; nothing is sent yet."""
        self._connection = connection
        self._request = request
        self._settings = settings
        self._prefix = prefix
        self._machine = UploadSender(settings.chunk_size or connection.best_chunk_size)
        self._stream: ClientStream | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._error: TailraceError | None = None
        self._finishing = False
        self._detached = False
        self._sending = False
        self._work = asyncio.Event()
        self._changed = Signal()

    def _answer(self) -> Opened:
        if self._machine.opened is None:
            raise RuntimeError("the upload is not open; enter it with `async with`")
        return self._machine.opened

    @property
    def reference(self) -> str:
        return self._answer().status.reference

    @property
    def id(self) -> str:
        return self._answer().status.id

    @property
    def token(self) -> str:
        return self._answer().token

    @property
    def epoch(self) -> int:
        return self._answer().epoch

    @property
    def limits(self) -> Limits:
        return self._answer().limits

    @property
    def offset(self) -> int:
        self._answer()
        return self._machine.offset

    @property
    def announced(self) -> Checkpoint:
        self._answer()
        return self._machine.announced

    @property
    def status(self) -> Status:
        final = self._machine.final
        return self._answer().status if final is None or final.status is None else final.status

    async def open(self) -> None:
        if self._machine.opened is not None:
            return
        seconds = self._settings.connect_timeout
        try:
            try:
                async with asyncio.timeout(seconds):
                    self._stream = await self._connection.open(self._request)
                    message = await self._stream.receive()
            except DeadlineExceeded:
                # The server's own.
                raise
            except TimeoutError:
                raise DeadlineExceeded(what="the answer to the upload's request", seconds=seconds) from None
            if message is None:
                raise ProtocolError("the server ended the conversation without an answer")
            self._machine.receive(message)
            opened = self._answer()
            if self._machine.state is UploadState.OPEN and opened.offset:
                await self._continue(opened)
        except BaseException:
            self._machine.opened = None
            await self._end()
            raise
        if self._machine.state is UploadState.ENDED:
            await self._end()
            return
        self._tasks = [
            asyncio.create_task(self._run(self._send), name="tailrace upload sender"),
            asyncio.create_task(self._run(self._receive_messages), name="tailrace upload receiver"),
        ]

    async def _continue(self, opened: Opened) -> None:
        """Prove that the source begins with what the server has, and take up its hash state."""
        if self._prefix is None:
            raise InvalidArgument(
                field="prefix", problem=f"the upload continues at offset {opened.offset}; the bytes below it are needed"
            )
        hasher = HeadHasher()
        samples: list[tuple[int, bytes]] = []
        step = self._machine.chunk_size
        async for piece in self._prefix(opened.offset):
            hasher.update(piece)
            if hasher.size >= (samples[-1][0] if samples else 0) + step:
                samples.append((hasher.size, hasher.head()))
                if len(samples) > _MOST_SAMPLES:
                    samples = samples[1::2]
                    step *= 2
        if hasher.size != opened.offset:
            problem = f"it has {hasher.size} bytes where the server has {opened.offset}"
        elif hasher.head() != opened.head:
            problem = f"its first {opened.offset} bytes have another head than the server's"
        else:
            self._machine.continue_from(hasher)
            return
        raise SourceChanged(offset=await self._last_common(opened, samples), problem=problem)

    async def _last_common(self, opened: Opened, samples: list[tuple[int, bytes]]) -> int:
        known = [sample for sample in samples if sample[0] <= opened.offset][-opened.limits.max_heads :]
        if not known:
            return 0
        answer = await self._connection.call(
            GetHeads(id=opened.status.id, token=opened.token, sizes=tuple(size for size, _ in known))
        )
        if not isinstance(answer, Heads):
            raise ProtocolError(f"{type(answer).__name__} does not answer GetHeads")
        agreed = [size for (size, mine), theirs in zip(known, answer.heads, strict=True) if mine == theirs]
        return max(agreed, default=0)

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run one of the two tasks; what ends it early ends the upload."""
        try:
            await work()
        except TailraceError as exc:
            self._fail(exc)
        except Exception as exc:  # noqa: BLE001 - a defect ends the upload with its cause, and is raised by the next call
            error = InternalError(f"{type(exc).__name__}: {exc}")
            error.__cause__ = exc
            self._fail(error)

    def _fail(self, error: TailraceError) -> None:
        # The server's reason says more than a broken connection.
        if self._error is None or isinstance(self._error, ConnectionLost):
            self._error = error
        self._work.set()
        self._changed.notify()

    async def _send(self) -> None:
        try:
            await self._send_chunks()
        except ConnectionLost:
            # Why the server ended the conversation may have arrived and not been read yet.
            await asyncio.wait(self._tasks[1:], timeout=_REASON_TIMEOUT)
            raise

    async def _send_chunks(self) -> None:
        machine, work, changed = self._machine, self._work, self._changed
        assert self._stream is not None
        send = self._stream.send
        while self._error is None:
            chunk = machine.next_chunk()
            if chunk is not None:
                self._sending = True
                await send(chunk)
                self._sending = False
                # Nothing may keep the chunk alive while the next one is awaited.
                del chunk
                changed.notify()
            elif self._finishing and not machine.pending:
                await send(machine.finish())
                changed.notify()
                return
            else:
                work.clear()
                await work.wait()

    async def _receive_messages(self) -> None:
        assert self._stream is not None
        while True:
            message = await self._stream.receive()
            if message is None:
                raise ConnectionLost("the server ended the conversation before the upload")
            self._machine.receive(message)
            self._work.set()
            self._changed.notify()
            if self._machine.state is UploadState.ENDED:
                return

    def _check(self) -> None:
        """Raise what ended the upload, if it has ended."""
        if self._error is not None:
            raise self._error
        if self._machine.state is UploadState.ENDED:
            raise UploadAborted(reason="the upload has ended")
        if self._finishing:
            raise UploadAborted(reason="the upload is being completed")

    async def write(self, data: Buffer) -> None:
        self._answer()
        self._check()
        if type(data) is bytes:
            await self._hand_over(data)
            return
        # What may be changed later is copied, a chunk at a time: it may be as large as a mapped file.
        view = memoryview(flat(data))
        step = self._machine.chunk_size
        for start in range(0, len(view), step):
            await self._hand_over(bytes(view[start : start + step]))

    async def _hand_over(self, data: bytes) -> None:
        machine = self._machine
        machine.write(data)
        self._work.set()
        while machine.pending > machine.chunk_size:
            await self._changed.wait()
            self._check()

    async def flush(self) -> Checkpoint:
        self._answer()
        target = self._machine.offset
        while self._machine.announced.size < target:
            if self._error is not None:
                raise self._error
            if self._machine.state is UploadState.ENDED:
                raise UploadAborted(reason=self.status.reason or "the upload has ended")
            await self._changed.wait()
        return self._machine.announced

    async def finish(self) -> Status:
        self._answer()
        if self._machine.state is not UploadState.ENDED:
            if self._machine.state is UploadState.OPEN:
                self._finishing = True
                self._work.set()
            try:
                await self._wait_for_end()
            except TailraceError:
                await self._end()
                raise
            await self._end()
        final = self._machine.final
        if final is None or final.status is None:
            raise self._error or UploadAborted(reason="the upload has ended")
        if final.status.state is not ResourceState.COMPLETED:
            raise self._error or UploadAborted(reason=final.status.reason or "the upload has failed")
        return final.status

    async def _wait_for_end(self) -> None:
        """Wait for the acknowledgement; its deadline begins when there is nothing left to send."""
        machine = self._machine
        while machine.state is UploadState.OPEN and self._error is None:
            await self._changed.wait()
        seconds = self._settings.finish_timeout
        try:
            async with asyncio.timeout(seconds):
                while machine.final is None:
                    if self._error is not None:
                        raise self._error
                    await self._changed.wait()
        except DeadlineExceeded:
            # The server's own.
            raise
        except TimeoutError:
            error = DeadlineExceeded(what="the end of the upload", seconds=seconds)
            self._fail(error)
            raise error from None

    async def abort(self, reason: str = "aborted by the client") -> Status | None:
        if self._machine.opened is None:
            return None
        try:
            if self._machine.state is not UploadState.ENDED and self._error is None:
                async with asyncio.timeout(_ABORT_TIMEOUT):
                    await self._send_abort(reason)
        except (TimeoutError, TailraceError):
            # The server notices the end of the conversation, and fails the upload after its grace period.
            pass
        finally:
            if self._machine.final is None:
                self._fail(UploadAborted(reason=reason))
            await self._end()
        return None if self._machine.final is None else self._machine.final.status

    async def _send_abort(self, reason: str) -> None:
        """Give the upload up, and wait until the server has taken note; what is being completed is cut."""
        if self._machine.state is UploadState.OPEN:
            await self._leave_off(reason)
        while self._machine.state is UploadState.ABORTING and self._error is None:
            await self._changed.wait()

    async def _leave_off(self, reason: str) -> None:
        assert self._stream is not None
        sender, _ = self._tasks
        message = self._machine.abort(reason)
        # With nothing left to cut the sender ends behind the message that it is sending, which must not be cut in two.
        self._finishing = False
        self._work.set()
        while not sender.done() and self._sending:
            await self._changed.wait()
        await cancel_and_wait(sender)
        await self._stream.send(message)

    async def checkpoints(self) -> AsyncGenerator[Checkpoint, None]:
        self._answer()
        known: Checkpoint | None = None
        while True:
            announced = self._machine.announced
            if announced != known:
                known = announced
                yield announced
            elif self._error is not None:
                raise self._error
            elif self._machine.state is UploadState.ENDED:
                return
            else:
                await self._changed.wait()

    async def detach(self) -> None:
        if self._machine.opened is None or self._machine.state is not UploadState.OPEN:
            return
        try:
            await self.flush()
        finally:
            self._detached = True
            if self._error is None:
                self._fail(UploadAborted(reason="the session was detached"))
            await self._end()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._detached:
            await super().__aexit__(exc_type, exc, traceback)

    async def _end(self) -> None:
        """Release tasks and conversation; the outcome stays."""
        try:
            await cancel_and_wait(*self._tasks)
        finally:
            if self._stream is not None:
                await self._stream.close()
            self._changed.notify()
