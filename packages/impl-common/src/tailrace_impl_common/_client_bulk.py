"""The client's side of a bulk, above the transports."""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import replace

from tailrace_client_upload_api import BulkUpload, RecordContent, encode_record, key_size
from tailrace_common_api import (
    RECORD_OVERHEAD,
    BulkResult,
    ConnectionLost,
    DeadlineExceeded,
    IntegrityError,
    InternalError,
    InvalidArgument,
    ProtocolError,
    QuotaExceeded,
    RecordLimits,
    StorageFailure,
    TailraceError,
    UploadAborted,
    check_end_name,
    check_priority,
)
from tailrace_impl_common._bulk_machine import BulkSender, check_limits, largest_record
from tailrace_impl_common._cancelling import cancel_and_wait
from tailrace_impl_common._reconnecting import ServerLink
from tailrace_impl_common._retry import is_refusal_for_now, is_retried
from tailrace_impl_common._signal import Signal
from tailrace_impl_common._streams import ClientStream
from tailrace_impl_common.record_messages import MESSAGE_BYTES, MESSAGE_RECORDS, BulkOpened, OpenBulk

logger = logging.getLogger(__name__)

_REASON_TIMEOUT = 5.0
"""Time that the server's reason may take when sending has failed, in seconds."""


class ConnectedBulk(BulkUpload):
    """A bulk over any transport: one task sends what is gathered, another takes what the server says.

    A third one watches over both. What is gathered is at most one message; while it is on its way the next one fills.
    """

    def __init__(self, link: ServerLink, request: OpenBulk) -> None:
        """Prepare the bulk that ``request`` begins; nothing is sent yet.

        Raises:
            InvalidArgument: A value of it cannot be accepted.
        """
        check_end_name(request.collection)
        check_priority(request.priority)
        self._link = link
        self._settings = link.settings
        self._request = _with_key(request)
        self._machine = BulkSender()
        self._reconnection = link.reconnection()
        self._stream: ClientStream | None = None
        self._runner: asyncio.Task[None] | None = None
        self._error: TailraceError | None = None
        self._ready = False
        """Whether records are taken: it is open and has neither ended nor is it being committed."""
        self._sleeping = False
        """Whether the sender waits for something to send."""
        self._work = asyncio.Event()
        self._changed = Signal()
        self._commit_wanted = False
        self._repeated = False
        """Whether a bulk with this key has committed before this one: nothing is sent, and committing compares."""
        self._confirmed = False
        """Whether that comparison found the same records."""
        self._not_committed = False
        """Whether the commit was asked for, and is known to have had no effect."""
        self._asking = False
        """Whether the connection was lost behind ``CommitBulk``, and the server is asked what became of it."""
        self._count = 0
        self._size = 0
        self._largest = self._most_records = self._most_bytes = 0

    def _answer(self) -> BulkOpened:
        if self._machine.opened is None:
            raise RuntimeError("the bulk is not open; enter it with `async with`")
        return self._machine.opened

    @property
    def id(self) -> str:
        return self._answer().id

    @property
    def limits(self) -> RecordLimits:
        return self._answer().limits

    @property
    def count(self) -> int:
        return self._count

    @property
    def result(self) -> BulkResult | None:
        return self._machine.result

    @property
    def in_doubt(self) -> bool:
        """Whether it may have been committed though there is no result: the commit was asked for, and not answered."""
        return self._machine.committing and self._machine.result is None and not self._not_committed

    async def failed(self) -> TailraceError:
        """Wait until the bulk is over and not committed, also while nothing is sent, and return why."""
        while self._error is None:
            await self._changed.wait()
        return self._error

    # Opening.

    async def open(self) -> None:
        if self._machine.opened is not None:
            return
        self._check_not_ended()
        try:
            await self._open_first()
        except BaseException:
            self._machine.opened = None
            await self._leave_stream()
            raise
        self._take_limits()
        self._ready = True
        if self._repeated:
            await self._leave_stream()
            return
        self._runner = asyncio.create_task(self._run(), name="tailrace bulk")

    async def _open_first(self) -> None:
        """Begin the first conversation; tried again where that may help, since the key keeps it from counting twice."""
        while True:
            try:
                await self._begin(self._settings.connect_timeout)
            except TailraceError as error:
                again = is_refusal_for_now(error) or isinstance(error, ConnectionLost)
                if not (again and self._link.may_try_again()):
                    raise
                await self._leave_stream(error)
                await self._link.come_back(self._reconnection, error, unwanted=self._is_over)
                continue
            self._reconnection.progress()
            return

    async def _begin(self, seconds: float) -> BulkOpened:
        """Begin a conversation and return the answer to its request, which may take ``seconds`` for each way."""
        seconds *= self._link.connection.ways
        self._stream = None
        try:
            async with asyncio.timeout(seconds):
                self._stream = await self._link.connection.open(self._request)
                message = await self._stream.receive()
        except DeadlineExceeded:
            # The server's own.
            raise
        except TimeoutError:
            raise DeadlineExceeded(what="the answer to OpenBulk", seconds=seconds) from None
        if message is None:
            raise ConnectionLost("the server ended the conversation without an answer")
        if not isinstance(message, BulkOpened):
            raise ProtocolError(f"{type(message).__name__} does not answer OpenBulk")
        if not self._machine.committing:
            if message.result is None:
                check_limits(message.limits, message.until)
            self._machine.receive(message)
            self._repeated = message.result is not None
        self._link.opened(self._reconnection)
        return message

    def _take_limits(self) -> None:
        limits = self._answer().limits
        self._largest = largest_record(limits)
        self._most_records, self._most_bytes = limits.bulk_records, limits.bulk_bytes

    async def _leave_stream(self, error: TailraceError | None = None) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            if error is not None:
                self._link.lose(stream, error)
            await stream.close()

    # Sending.

    async def send(self, record: RecordContent, *, key: str | None = None) -> None:
        if not self._ready:
            self._refuse()
        if type(record) is bytes:
            data = record
        else:
            data, key = encode_record(record, key)
        size = len(data) if key is None else len(data) + key_size(key)
        if size > self._largest:
            raise InvalidArgument(field="record", problem=f"{size} bytes; at most {self._largest} are accepted")
        if self._count >= self._most_records:
            raise QuotaExceeded(limit="records per bulk", maximum=self._most_records, actual=self._count + 1)
        if self._size + size > self._most_bytes:
            raise QuotaExceeded(limit="bytes per bulk", maximum=self._most_bytes, actual=self._size + size)
        machine = self._machine
        counted = size + RECORD_OVERHEAD
        if machine.gathered + counted > MESSAGE_BYTES or len(machine.data) >= MESSAGE_RECORDS:
            await self._make_room()
        machine.add(data, key, counted)
        self._count += 1
        self._size += size
        if self._sleeping:
            self._work.set()

    async def _make_room(self) -> None:
        """Wait until what is gathered is on its way."""
        machine = self._machine
        while machine.data:
            if self._repeated:
                machine.forget()
                return
            self._work.set()
            await self._changed.wait()
            if not self._ready:
                self._refuse()

    def _refuse(self) -> None:
        """Say why no record is taken.

        Raises:
            TailraceError: The bulk is over.
        """
        self._answer()
        self._check_not_ended()
        raise UploadAborted(reason="the bulk was committed, or is being committed")

    def _check_not_ended(self) -> None:
        if self._error is not None:
            raise self._error

    # One conversation, and what follows when it is lost.

    async def _run(self) -> None:
        """Hold the conversation until the bulk has ended, however it does."""
        try:
            while True:
                error = await self._converse()
                await self._leave_stream(error)
                if error is None:
                    break
                if self._machine.committing:
                    await self._ask_for_the_result(error)
                    break
                await self._begin_again(error)
                if self._repeated:
                    await self._leave_stream()
                    break
        except TailraceError as error:
            self._fail(error)
        except Exception as exc:  # noqa: BLE001 - a defect ends the bulk with its cause, and is raised by the next call
            failure = InternalError(f"{type(exc).__name__}: {exc}")
            failure.__cause__ = exc
            self._fail(failure)
        finally:
            self._ready = self._ready and self._repeated
            self._changed.notify()

    def _fail(self, error: TailraceError) -> None:
        if self._error is None:
            self._error = error
        self._ready = False
        self._changed.notify()

    def _is_over(self) -> bool:
        return self._error is not None

    async def _converse(self) -> TailraceError | None:
        """Send and receive until the conversation ends; return why, or ``None`` when the bulk was committed.

        Raises:
            Exception: A defect of this side.
        """
        assert self._stream is not None
        sender = asyncio.create_task(self._send(self._stream), name="tailrace bulk sender")
        receiver = asyncio.create_task(self._receive(self._stream), name="tailrace bulk receiver")
        try:
            await asyncio.wait((sender, receiver), return_when=asyncio.FIRST_COMPLETED)
            failure = None if sender.cancelled() or not sender.done() else sender.exception()
            if not receiver.done() and (failure is None or isinstance(failure, ConnectionLost)):
                # Why the server ended the conversation may have arrived and not been read yet.
                await asyncio.wait((receiver,), timeout=None if failure is None else _REASON_TIMEOUT)
        finally:
            self._sleeping = False
            await cancel_and_wait(sender, receiver)
        reasons = [task.exception() for task in (receiver, sender) if not task.cancelled()]
        if not receiver.cancelled() and reasons[0] is None:
            return None
        # The server's reason says more than a broken connection.
        known = sorted((reason for reason in reasons if reason is not None), key=_says_little)
        if not isinstance(known[0], TailraceError):
            raise known[0]
        return known[0]

    async def _send(self, stream: ClientStream) -> None:
        machine, work, changed = self._machine, self._work, self._changed
        while True:
            batch = machine.next_message()
            if batch is not None:
                changed.notify()
                await stream.send(batch)
                # Nothing may keep the records while the next ones are awaited.
                del batch
            elif self._commit_wanted and not machine.data:
                await stream.send(machine.commit())
                changed.notify()
                return
            else:
                self._sleeping = True
                work.clear()
                await work.wait()
                self._sleeping = False

    async def _receive(self, stream: ClientStream) -> None:
        machine = self._machine
        while machine.result is None:
            message = await stream.receive()
            if message is None:
                raise ConnectionLost("the server ended the conversation before the bulk was committed")
            machine.receive(message)
            self._work.set()

    async def _begin_again(self, error: TailraceError) -> None:
        """Begin once more after a conversation in which no record was sent.

        Raises:
            TailraceError: ``error``: records were sent, so they are gone with it, or it is no use; a lost connection
                says then that nothing was committed.
        """
        if self._machine.sent and isinstance(error, ConnectionLost):
            raise ConnectionLost(f"{error.message}; nothing was committed") from error
        if self._machine.sent or not (is_refusal_for_now(error) or isinstance(error, ConnectionLost)):
            raise error
        while True:
            await self._link.come_back(self._reconnection, error, unwanted=self._is_over)
            try:
                await self._begin(self._settings.connect_timeout)
            except TailraceError as failed:
                await self._leave_stream(failed)
                error = failed
            else:
                self._take_limits()
                return

    async def _ask_for_the_result(self, error: TailraceError) -> None:
        """Find out what became of the commit after a conversation was lost behind it.

        Raises:
            TailraceError: The bulk was not committed; or, as ``ConnectionLost``, nobody knows.
        """
        if not _leaves_open(error):
            self._not_committed = True
            raise error
        self._asking = True
        lost = error
        try:
            while isinstance(answer := await self._ask(error), TailraceError):
                error = answer
        except TailraceError as failed:
            if isinstance(failed, ConnectionLost | DeadlineExceeded):
                raise
            raise ConnectionLost(f"it is not known whether the bulk was committed: {failed.message}") from failed
        if answer.result is None:
            self._not_committed = True
            if isinstance(lost, ConnectionLost):
                raise ConnectionLost("the connection was lost before the commit was reached; nothing was committed")
            raise lost
        self._machine.compare(answer.result)
        # It is this bulk's own result, whichever answer brought it.
        self._machine.result = replace(answer.result, repeated=False)

    async def _ask(self, error: TailraceError) -> BulkOpened | TailraceError:
        """Wait, and begin the bulk again, which tells its result if it has one; or return why that failed for now.

        Raises:
            TailraceError: There is no answer to be expected any more.
        """
        if isinstance(error, StorageFailure):
            # A database that failed may be back, as a server may be that was lost.
            error = ConnectionLost(error.message)
        await self._link.come_back(self._reconnection, error, unwanted=self._is_over)
        try:
            # A server that is still committing answers when that has ended.
            opened = await self._begin(self._settings.finish_timeout)
        except TailraceError as failed:
            await self._leave_stream(failed)
            if not _leaves_open(failed):
                raise
            return failed
        # If it has no result this has begun the bulk once more; leaving gives it up.
        await self._leave_stream()
        return opened

    # The end.

    async def commit(self) -> BulkResult:
        self._answer()
        machine = self._machine
        if not self._repeated:
            self._ready = False
            self._commit_wanted = True
            self._work.set()
        while machine.result is None:
            self._check_not_ended()
            if not machine.committing or self._asking:
                await self._changed.wait()
            else:
                await self._wait_for_the_result()
        if self._repeated and not self._confirmed:
            self._confirm(machine.result)
        return machine.result

    def _confirm(self, result: BulkResult) -> None:
        """Compare the records with those of the bulk that has committed before."""
        self._check_not_ended()
        self._ready = False
        try:
            self._machine.compare(result)
        except TailraceError as error:
            self._fail(error)
            raise
        self._confirmed = True

    async def _wait_for_the_result(self) -> None:
        """Wait for the answer to the commit, which has a deadline."""
        seconds = self._settings.finish_timeout
        try:
            async with asyncio.timeout(seconds):
                while self._machine.result is None and self._error is None and not self._asking:
                    await self._changed.wait()
        except TimeoutError:
            self._fail(DeadlineExceeded(what="the commit of the bulk", seconds=seconds))
            await self.cancel()

    async def cancel(self) -> None:
        if self._machine.result is None or (self._repeated and not self._confirmed):
            self._fail(UploadAborted(reason="the bulk was cancelled"))
        self._ready = False
        self._link.wake()
        try:
            if self._runner is not None:
                await cancel_and_wait(self._runner)
        finally:
            await self._leave_stream()


def _with_key(request: OpenBulk) -> OpenBulk:
    key = request.idempotency_key
    if key is None:
        key = secrets.token_urlsafe(18)
    elif not (1 <= len(key) <= 255 and key.isprintable()):
        raise InvalidArgument(field="idempotency_key", problem="not of 1 to 255 printable characters")
    return OpenBulk(
        collection=request.collection,
        content_type=request.content_type,
        idempotency_key=key,
        reporting=request.reporting,
        priority=request.priority,
    )


def _leaves_open(error: TailraceError) -> bool:
    """Return whether a bulk may have been committed although its commit was answered with ``error``."""
    if isinstance(error, IntegrityError):
        return False
    return is_retried(error) or isinstance(error, StorageFailure)


def _says_little(reason: BaseException) -> bool:
    return isinstance(reason, ConnectionLost)
