"""The client's side of an upload, above the transports."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import suppress
from types import TracebackType

from tailrace_client_upload_api import Buffer, UploadSession
from tailrace_common_api import (
    KIBIBYTE,
    AlreadyTerminal,
    Checkpoint,
    ConnectionLost,
    DeadlineExceeded,
    IntegrityError,
    InternalError,
    InvalidArgument,
    Limits,
    ProtocolError,
    ResourceFailed,
    ResourceState,
    SourceChanged,
    Status,
    TailraceError,
    UploadAborted,
)
from tailrace_impl_common._buffers import flat
from tailrace_impl_common._cancelling import cancel_and_wait
from tailrace_impl_common._head import HeadHasher
from tailrace_impl_common._reconnecting import ServerLink
from tailrace_impl_common._retry import is_refusal_for_now
from tailrace_impl_common._signal import Signal
from tailrace_impl_common._streams import ClientStream
from tailrace_impl_common._upload_machine import Resumption, UploadSender, UploadState
from tailrace_impl_common.messages import Finished, GetHeads, Heads, Opened, OpenUpload, ReopenUpload, Window

logger = logging.getLogger(__name__)

_ABORT_TIMEOUT = 5.0
"""Time for an abort to be sent and acknowledged, in seconds; after it the conversation is cut."""
_REASON_TIMEOUT = 5.0
"""Time that the server's reason may take when sending has failed, in seconds."""
_KEPT_VIEW = 64 * KIBIBYTE
"""Views of bytes from this size on are held until they are announced; smaller ones are copied."""
_MOST_SAMPLES = 256
"""Heads of a prefix that are kept to find where it begins to differ."""


class ConnectedUpload(UploadSession):
    """An upload over any transport: one task sends what is written, another takes what the server says.

    A third one watches over both. When their conversation is lost it begins the next, and they go on.
    """

    def __init__(
        self,
        link: ServerLink,
        request: OpenUpload | ReopenUpload,
        prefix: Callable[[int], AsyncIterable[Buffer]] | None = None,
    ) -> None:
        """Prepare the upload that ``request`` begins; nothing is sent yet."""
        self._link = link
        self._request = request
        self._settings = link.settings
        self._prefix = prefix
        self._machine = UploadSender(self._best_chunk_size)
        self._reconnection = link.reconnection()
        self._stream: ClientStream | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._sender: asyncio.Task[None] | None = None
        self._conversation = 0
        self._error: TailraceError | None = None
        self._interruption: TailraceError | None = None
        self._finishing = False
        self._detached = False
        self._sending = False
        # Tells the sender of bytes, of room for them, and of the end.
        self._work = Signal()
        self._changed = Signal()

    @property
    def _best_chunk_size(self) -> int:
        return self._settings.chunk_size or self._link.connection.best_chunk_size

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

    @property
    def interruption(self) -> TailraceError | None:
        return self._interruption

    async def interruptions(self) -> AsyncGenerator[TailraceError | None, None]:
        known: TailraceError | None = None
        while self._error is None and self._machine.state is not UploadState.ENDED:
            if self._interruption is not known:
                known = self._interruption
                yield known
            else:
                await self._changed.wait()

    async def open(self) -> None:
        if self._machine.opened is not None:
            return
        try:
            opened = await self._open_first()
            if self._machine.state is UploadState.OPEN and opened.offset:
                self._machine.continue_from(await self._hash_prefix(opened))
        except BaseException:
            self._machine.opened = None
            await self._end()
            raise
        if self._machine.state is UploadState.ENDED:
            await self._end()
            return
        self._tasks = [asyncio.create_task(self._run(), name="tailrace upload")]

    async def _open_first(self) -> Opened:
        """Begin the first conversation; tried again where that cannot begin a second upload."""
        request, link = self._request, self._link
        repeatable = isinstance(request, ReopenUpload) or request.idempotency_key is not None
        while True:
            try:
                message = await self._begin(request)
            except TailraceError as error:
                again = is_refusal_for_now(error) or (repeatable and isinstance(error, ConnectionLost))
                if not (again and link.may_try_again()):
                    raise
                await self._leave_stream(error)
                await link.come_back(self._reconnection, error)
                continue
            self._machine.receive(message)
            link.opened(self._reconnection)
            self._reconnection.progress()
            return message

    async def _begin(self, request: OpenUpload | ReopenUpload) -> Opened:
        """Begin a conversation, and return the answer to its request."""
        # As long for each way to a server, or the first that nobody answers on would keep the others from being tried.
        seconds = self._settings.connect_timeout * self._link.connection.ways
        self._stream = None
        try:
            async with asyncio.timeout(seconds):
                self._stream = await self._link.connection.open(request)
                message = await self._stream.receive()
        except DeadlineExceeded:
            # The server's own.
            raise
        except TimeoutError:
            raise DeadlineExceeded(what="the answer to the upload's request", seconds=seconds) from None
        if message is None:
            raise ConnectionLost("the server ended the conversation without an answer")
        if not isinstance(message, Opened):
            raise ProtocolError(f"{type(message).__name__} does not answer {type(request).__name__}")
        return message

    async def _leave_stream(self, error: TailraceError | None = None) -> None:
        if self._stream is not None:
            if error is not None:
                self._link.lose(self._stream, error)
            await self._stream.close()

    async def _hash_prefix(self, opened: Opened) -> HeadHasher:
        """Prove that the source begins with what the server has, and return its hash state there."""
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
            return hasher
        raise SourceChanged(offset=await self._last_common(opened, samples), problem=problem)

    async def _last_common(self, opened: Opened, samples: list[tuple[int, bytes]]) -> int:
        known = [sample for sample in samples if sample[0] <= opened.offset][-opened.limits.max_heads :]
        if not known:
            return 0
        request = GetHeads(id=opened.status.id, token=opened.token, sizes=tuple(size for size, _ in known))
        answer = await self._link.ask(request, Heads)
        agreed = [size for (size, mine), theirs in zip(known, answer.heads, strict=True) if mine == theirs]
        return max(agreed, default=0)

    # One conversation after the other.

    async def _run(self) -> None:
        """Hold conversations until the upload has ended, or cannot be continued."""
        try:
            while True:
                error = await self._converse()
                await self._leave_stream(error)
                if error is None or not await self._resume(error):
                    return
        except TailraceError as exc:
            self._fail(exc)
        except Exception as exc:  # noqa: BLE001 - a defect ends the upload with its cause, and is raised by the next call
            error = InternalError(f"{type(exc).__name__}: {exc}")
            error.__cause__ = exc
            self._fail(error)

    def _fail(self, error: TailraceError) -> None:
        if self._error is None:
            self._error = error
        self._interrupted_by(None)
        self._work.notify()

    def _interrupted_by(self, error: TailraceError | None) -> None:
        self._interruption = error
        self._changed.notify()

    async def _converse(self) -> TailraceError | None:
        """Send and receive until the conversation ends; return why, or ``None`` when the upload has ended.

        Raises:
            Exception: A defect of this side.
        """
        self._conversation += 1
        # Of the sender before this one, which may have been cut off.
        self._sending = False
        sender = self._sender = asyncio.create_task(self._send(), name="tailrace upload sender")
        receiver = asyncio.create_task(self._receive(), name="tailrace upload receiver")
        try:
            await asyncio.wait((sender, receiver), return_when=asyncio.FIRST_COMPLETED)
            failure = None if sender.cancelled() or not sender.done() else sender.exception()
            if failure is None:
                await asyncio.wait((receiver,))
            elif isinstance(failure, ConnectionLost):
                # Why the server ended the conversation may have arrived and not been read yet.
                await asyncio.wait((receiver,), timeout=_REASON_TIMEOUT)
        finally:
            await cancel_and_wait(sender, receiver)
        reasons = [task.exception() for task in (receiver, sender) if not task.cancelled()]
        if reasons and reasons[0] is None and not receiver.cancelled():
            return None
        # The server's reason says more than a broken connection.
        known = sorted((reason for reason in reasons if reason is not None), key=_says_little)
        if not isinstance(known[0], TailraceError):
            raise known[0]
        return known[0]

    async def _send(self) -> None:
        machine, work, changed = self._machine, self._work, self._changed
        assert self._stream is not None
        send = self._stream.send
        if machine.missing is not None:
            await self._send_missing(machine.missing)
        while True:
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
                await work.wait()

    async def _send_missing(self, until: int) -> None:
        """Send what the server lost and is not kept here, from the source."""
        assert self._prefix is not None
        position, start = 0, self._machine.sent
        source = self._prefix(until)
        try:
            async for piece in source:
                view = memoryview(flat(piece))
                skipped = max(0, min(len(view), start - position))
                position += len(view)
                self._machine.refill(bytes(view[skipped:]))
                await self._send_refilled(position)
        finally:
            if isinstance(source, AsyncGenerator):
                await source.aclose()
        if position != until:
            problem = f"it has {position} bytes where {until} were sent before"
            raise SourceChanged(offset=min(start, position), problem=problem)
        self._machine.close_gap()

    async def _send_refilled(self, until: int) -> None:
        assert self._stream is not None
        while self._machine.sent < until:
            chunk = self._machine.next_chunk()
            if chunk is None:
                await self._work.wait()
            else:
                self._sending = True
                await self._stream.send(chunk)
                self._sending = False
                self._changed.notify()

    async def _receive(self) -> None:
        assert self._stream is not None
        machine, reconnection = self._machine, self._reconnection
        while True:
            message = await self._stream.receive()
            if message is None:
                raise ConnectionLost("the server ended the conversation before the upload")
            machine.receive(message)
            if reconnection.pending:
                reconnection.progress()
            if isinstance(message, Window):
                # Nothing else lets the sender go on.
                self._work.notify()
            self._changed.notify()
            if machine.state is UploadState.ENDED:
                return

    async def _resume(self, error: TailraceError) -> bool:
        """Reopen the upload after its conversation was lost; return whether there is a new one.

        Raises:
            TailraceError: It cannot be continued.
        """
        opened = self._answer()
        if self._machine.state is UploadState.ABORTING:
            raise error
        lost = error
        while True:
            self._interrupted_by(error)
            await self._link.come_back(self._reconnection, error, unwanted=self._is_unwanted)
            if error is lost:
                logger.warning("upload %s is interrupted: %s", opened.status.id, ascii(error.message))
            try:
                going_on = await self._reopen(ReopenUpload(id=opened.status.id, token=opened.token))
            except TailraceError as exc:
                await self._leave_stream(exc)
                if isinstance(exc, ResourceFailed) and isinstance(lost, IntegrityError):
                    # The server has failed it for that very reason.
                    raise lost from None
                error = exc
            else:
                break
        if going_on:
            logger.info("upload %s goes on at offset %d", opened.status.id, self._answer().offset)
        self._interrupted_by(None)
        return going_on

    def _is_unwanted(self) -> bool:
        return self._error is not None

    async def _reopen(self, request: ReopenUpload) -> bool:
        """Begin the next conversation; return whether the upload goes on.

        Raises:
            TailraceError: It does not, or not yet.
        """
        opened = await self._begin(request)
        self._link.opened(self._reconnection)
        machine = self._machine
        resumption = machine.resume(opened, chunk_size=self._best_chunk_size)
        if resumption is Resumption.DIFFERS:
            offset = await self._last_common(opened, machine.known_heads(opened.offset))
            problem = f"the first {opened.offset} bytes at the server are not those that were sent"
            raise SourceChanged(offset=offset, problem=problem)
        if resumption is Resumption.MISSING:
            if self._prefix is None:
                await self._give_up(opened)
            machine.rewind(opened, await self._hash_prefix(opened), chunk_size=self._best_chunk_size)
        if resumption is Resumption.ENDED:
            await self._leave_stream()
            return False
        return True

    async def _give_up(self, opened: Opened) -> None:
        """End an upload of which the server has lost what nobody has any more, so that its followers are told.

        Raises:
            DataLost: Always.
        """
        abort, lost = self._machine.give_up(opened)
        assert self._stream is not None
        with suppress(TimeoutError, TailraceError):
            async with asyncio.timeout(_ABORT_TIMEOUT):
                await self._stream.send(abort)
                while not isinstance(message := await self._stream.receive(), Finished | None):
                    pass
                if message is not None:
                    self._machine.receive(message)
        raise lost

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
        # What may be changed later is copied, a chunk at a time: it may be as large as a mapped file. A view of bytes
        # cannot be, but a small one would keep all of them alive.
        view = memoryview(flat(data))
        step = self._machine.chunk_size
        kept = type(view.obj) is bytes and len(view) >= _KEPT_VIEW
        for start in range(0, len(view), step):
            piece = view[start : start + step]
            await self._hand_over(piece if kept else bytes(piece))

    async def _hand_over(self, data: Buffer) -> None:
        machine = self._machine
        machine.write(data)
        self._work.notify()
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
                self._work.notify()
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
        """Wait for the acknowledgement; its deadline begins, in each conversation, behind the last byte."""
        machine = self._machine
        seconds = self._settings.finish_timeout
        while machine.final is None or self._error is not None:
            if self._error is not None:
                raise self._error
            if machine.state is not UploadState.FINISHING or self._interruption is not None:
                await self._changed.wait()
                continue
            try:
                async with asyncio.timeout(seconds):
                    await self._wait_for_acknowledgement()
            except TimeoutError:
                error = DeadlineExceeded(what="the end of the upload", seconds=seconds)
                self._fail(error)
                raise error from None

    async def _wait_for_acknowledgement(self) -> None:
        machine, conversation = self._machine, self._conversation
        while machine.final is None and self._error is None:
            if self._interruption is not None or self._conversation != conversation:
                return
            await self._changed.wait()

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
        if self._interruption is not None:
            return
        if self._machine.state is UploadState.OPEN:
            await self._leave_off(reason)
        while self._machine.state is UploadState.ABORTING and self._error is None:
            await self._changed.wait()

    async def _leave_off(self, reason: str) -> None:
        assert self._stream is not None
        stream, sender = self._stream, self._sender
        message = self._machine.abort(reason)
        # With nothing left to cut the sender ends behind the message that it is sending, which must not be cut in two.
        self._finishing = False
        self._work.notify()
        if sender is not None:
            while not sender.done() and self._sending:
                await self._changed.wait()
            await cancel_and_wait(sender)
        await stream.send(message)

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
        if self._detached:
            return
        if exc is None and isinstance(self._error, ResourceFailed | AlreadyTerminal):
            # The upload has ended, though not by this client.
            await self._end()
            raise self._error
        await super().__aexit__(exc_type, exc, traceback)

    async def _end(self) -> None:
        """Release tasks and conversation; the outcome stays."""
        self._link.wake()
        try:
            await cancel_and_wait(*self._tasks)
        finally:
            await self._leave_stream()
            self._changed.notify()


def _says_little(reason: BaseException) -> bool:
    return isinstance(reason, ConnectionLost)
