"""The client's side of work, above the transports."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from tailrace_client_download_api import DEFAULT_CREDIT_BYTES, Delivery, RecordConsumer
from tailrace_common_api import (
    ConnectionLost,
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    LeaseLost,
    QueuedRecord,
    Record,
    Settlement,
    TailraceError,
    Verdict,
    check_end_name,
    error_from_wire,
)
from tailrace_impl_common._cancelling import cancel_and_wait
from tailrace_impl_common._reconnecting import ServerLink
from tailrace_impl_common._signal import Signal
from tailrace_impl_common._streams import ClientStream
from tailrace_impl_common._work_machine import Answer, WorkerMachine
from tailrace_impl_common.messages import ServerMessage
from tailrace_impl_common.record_messages import Deliveries, Settled

logger = logging.getLogger(__name__)

_EXTENSIONS = 3
"""How often a lease is begun again while it would last, where that is done by itself."""
_SHORTEST_PAUSE = 0.01
"""Least time between that, in seconds."""
_LONGEST_REASON = 1024
_LONGEST_TIME = 366 * 86400.0
"""Longest delay and lease, in seconds."""
_LARGEST_CREDIT = 2**53 - 1
"""What every transport can say."""


class ConnectedDelivery(Delivery):
    """A record that was handed to a consumer over any transport."""

    __slots__ = ("_consumer", "_queued", "_settled")

    def __init__(self, consumer: ConnectedConsumer, queued: QueuedRecord) -> None:
        self._consumer = consumer
        self._queued = queued
        self._settled = False

    @property
    def id(self) -> int:
        return self._queued.id

    @property
    def attempt(self) -> int:
        return self._queued.attempt

    @property
    def priority(self) -> int:
        return self._queued.priority

    @property
    def record(self) -> Record:
        return Record(self._queued.data, self._queued.key)

    @property
    def settled(self) -> bool:
        return self._settled

    async def ack(self) -> None:
        await self._answer(Verdict.ACKNOWLEDGE)

    async def reject(self, reason: str = "", *, delay: float = 0.0, dead_letter: bool = False) -> None:
        if not 0 <= delay <= _LONGEST_TIME:
            raise InvalidArgument(field="delay", problem=f"{delay:g} seconds are not within 0 and {_LONGEST_TIME:g}")
        await self._answer(
            Verdict.DEAD_LETTER if dead_letter else Verdict.REQUEUE, 0.0 if dead_letter else delay, reason
        )

    async def extend(self, seconds: float | None = None) -> None:
        if seconds is not None and not 0 < seconds <= _LONGEST_TIME:
            problem = f"{seconds:g} seconds are not above 0 and up to {_LONGEST_TIME:g}"
            raise InvalidArgument(field="seconds", problem=problem)
        await self._answer(Verdict.EXTEND, seconds or 0.0)

    async def _answer(self, verdict: Verdict, seconds: float = 0.0, reason: str = "") -> None:
        # Reasons are often texts of errors, and may hold what is no text, such as undecodable names of files.
        told = reason[:_LONGEST_REASON].encode("utf-8", "replace").decode() if reason else ""
        settlement = Settlement(self.id, self.attempt, verdict, seconds, told)
        await self._consumer.settle(settlement, self)

    def set_settled(self) -> None:
        """Take note that its answer counts."""
        self._settled = True


class ConnectedConsumer(RecordConsumer):
    """A consumer of a queue over any transport.

    One task drives it from its opening to its end: it keeps a conversation, sends what the bookkeeping has to say, and
    takes what the server says. What was delivered and not read yet is within the credit, and so bounded.
    """

    def __init__(
        self,
        link: ServerLink,
        queue: str,
        *,
        credit: int,
        credit_bytes: int = DEFAULT_CREDIT_BYTES,
        extend: bool = False,
    ) -> None:
        """Prepare the consumer; nothing is sent yet.

        Raises:
            InvalidArgument: The name cannot be one, or a credit is negative.
        """
        _check_credit(credit, credit_bytes)
        self._link = link
        self._queue = check_end_name(queue)
        self._extend = extend
        self._machine = WorkerMachine(self._queue, credit, credit_bytes)
        self._inbox: deque[ConnectedDelivery] = deque()
        self._arrived = Signal()
        """Something was delivered, or changed, or the consumer has ended."""
        self._to_send = Signal()
        self._task: asyncio.Task[None] | None = None
        self._failure: TailraceError | None = None
        self._refused = range(0)
        """Numbers of the credits that the server refused last."""
        self._refusal: TailraceError | None = None
        self._opening = 0
        self._closing = False

    async def open(self) -> None:
        try:
            await self._open()
        except asyncio.CancelledError:
            if not self._opening and self._task is not None:
                # Who is cancelled while entering never leaves: nothing may take work behind its back.
                await self._undo_opening()
            raise

    async def _open(self) -> None:
        self._opening += 1
        try:
            while self._task is None or self._machine.opened is None:
                if self._closing:
                    raise ConnectionLost("the consumer was closed")
                self._check()
                if self._task is None:
                    self._task = asyncio.create_task(self._run(), name=f"tailrace-consumer-{self._queue}")
                await self._arrived.wait()
            self._check()
        finally:
            self._opening -= 1

    async def _open_to_read(self) -> None:
        """Open it, unless it is closed meanwhile: that ends the reading in order."""
        try:
            await self._open()
        except ConnectionLost:
            if not self._closing:
                raise

    async def _undo_opening(self) -> None:
        """Be as before :meth:`open`; in order where the server has let the consumer in meanwhile."""
        assert self._task is not None
        try:
            if self._machine.opened is None:
                await cancel_and_wait(self._task)
            else:
                await self.close()
        finally:
            self._task = self._failure = None
            self._closing = False
            self._machine = self._machine.anew()
            self._inbox.clear()
            self._arrived.notify()

    @property
    def lease(self) -> float:
        if self._machine.opened is None:
            raise RuntimeError("the consumer is not open; open it, or enter it with `async with`")
        return self._machine.opened.lease

    @property
    def stalled(self) -> bool:
        return self._machine.stalled

    @property
    def outstanding(self) -> int:
        return len(self._machine.held)

    async def set_credit(self, records: int, bytes: int = DEFAULT_CREDIT_BYTES) -> None:
        _check_credit(records, bytes)
        version = self._machine.grant(records, bytes)
        self._to_send.notify()
        await self.open()
        while self._machine.version_in_force < version and version not in self._refused:
            self._check()
            await self._arrived.wait()
        if self._refusal is not None and version in self._refused:
            raise _copy(self._refusal)

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return _Deliveries(self)

    async def next_delivery(self) -> ConnectedDelivery | None:
        """Return the next delivery; ``None`` when the consumer was closed. Cancelling it loses nothing.

        Raises:
            TailraceError: The server's error, or the connection's when it did not come back.
        """
        while not self._inbox:
            if self._closing:
                return None
            self._check()
            if self._task is None or self._machine.opened is None:
                await self._open_to_read()
            else:
                await self._arrived.wait()
        return self._inbox.popleft()

    def try_next(self) -> ConnectedDelivery | None:
        """Return a delivery that is there; ``None`` when none is."""
        return self._inbox.popleft() if self._inbox else None

    async def settle(self, settlement: Settlement, delivery: ConnectedDelivery) -> None:
        """Give an answer, and wait until the server has taken it.

        Who stops waiting does not withdraw it, but where the consumer was closed before.

        Raises:
            LeaseLost: It does not count.
            StorageFailure: The server could not take it; it may be repeated.
            TailraceError: The server's error, or the connection's.
        """
        if settlement.verdict is Verdict.EXTEND and (delivery.settled or self._machine.is_answered(settlement[:2])):
            # The server would take it for the holder's word of something that it has let go.
            raise LeaseLost(id=settlement.id, attempt=settlement.attempt)
        if self._task is not None and self._machine.leave_said:
            # Its session takes no more answers, and is about to end.
            await asyncio.wait((self._task,))
        if self._failure is not None or self._task is None or self._task.done():
            await self._settle_late(settlement, delivery)
            return
        await self._give(settlement, delivery)

    def _give(self, settlement: Settlement, delivery: ConnectedDelivery | None = None) -> asyncio.Future[None]:
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: TailraceError | None) -> None:
            if error is None and delivery is not None and settlement.verdict is not Verdict.EXTEND:
                delivery.set_settled()
            if told.done():
                # Nobody waits any more.
                return
            if error is None:
                told.set_result(None)
            else:
                told.set_exception(error)
                # Where nobody ever waited it is nobody's concern.
                told.exception()

        self._machine.answer(Answer(settlement, done, lambda: not told.done()))
        self._to_send.notify()
        return told

    async def _settle_late(self, settlement: Settlement, delivery: ConnectedDelivery) -> None:
        """Answer behind the end of the consumer, in a session of its own that takes no work."""
        late = ConnectedConsumer(self._link, self._queue, credit=0, credit_bytes=0)
        try:
            await late.open()
            await late._give(settlement, delivery)
        finally:
            await late.close()
        if settlement.verdict is not Verdict.EXTEND:
            self._machine.forget(settlement[:2])

    async def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._inbox.clear()
            self._machine.leave()
            self._link.wake()
            self._to_send.notify()
            self._arrived.notify()
        if self._task is None or self._task.done():
            return
        try:
            async with asyncio.timeout(self._link.settings.answer_timeout):
                await asyncio.wait((self._task,))
        except TimeoutError:
            pass
        finally:
            await cancel_and_wait(self._task)

    def _check(self) -> None:
        if self._failure is not None:
            raise _copy(self._failure)
        if self._closing:
            raise ConnectionLost("the consumer was closed")

    # The task.

    async def _run(self) -> None:
        error: TailraceError = ConnectionLost("the consumer was closed")
        try:
            await self._keep_sessions()
        except TailraceError as exc:
            error = exc
        except Exception as exc:
            logger.exception("working on queue %s failed", self._queue)
            error = InternalError(f"working on queue {self._queue} failed: {type(exc).__name__}")
        finally:
            if not self._closing:
                self._failure = error
            self._machine.fail(lambda: _copy(error))
            self._arrived.notify()

    async def _keep_sessions(self) -> None:
        """Hold one session after the other until the consumer has left.

        Raises:
            TailraceError: A session was lost and is not to be followed by another.
        """
        reconnection = self._link.reconnection()
        while not (self._closing and self._machine.opened is None):
            stream: ClientStream | None = None
            lost: TailraceError
            try:
                stream = await self._link.connection.open(self._machine.begin())
                await self._take(await self._first(stream))
                self._link.opened(reconnection)
                await self._converse(stream, reconnection.progress)
                return
            except TailraceError as error:
                lost = error
                if isinstance(error, InvalidArgument) and self._revert(error):
                    continue
                if stream is not None:
                    self._link.lose(stream, lost)
            finally:
                if stream is not None:
                    await stream.close()
            if self._machine.opened is None and (isinstance(lost, DeadlineExceeded) or not self._link.may_try_again()):
                raise lost
            # What was answered is worth a connection still; for anything else the server comes to know by itself.
            await self._link.come_back(reconnection, lost, unwanted=lambda: self._closing and not self._machine.answers)

    def _revert(self, error: InvalidArgument) -> bool:
        """Go back to the credit before, if the server has ended the conversation because of a new one."""
        refused = range(self._machine.version_in_force + 1, self._machine.version + 1)
        if not self._machine.revert():
            return False
        self._refused, self._refusal = refused, error
        self._arrived.notify()
        return True

    async def _first(self, stream: ClientStream) -> ServerMessage:
        seconds = self._link.settings.answer_timeout
        try:
            async with asyncio.timeout(seconds):
                message = await stream.receive()
        except DeadlineExceeded:
            raise
        except TimeoutError:
            raise DeadlineExceeded(what="the answer to Work", seconds=seconds) from None
        if message is None:
            raise ConnectionLost("the server ended the conversation without an answer")
        return message

    async def _converse(self, stream: ClientStream, progress: Callable[[], None]) -> None:
        tasks = [asyncio.ensure_future(self._send(stream)), asyncio.ensure_future(self._receive(stream, progress))]
        if self._extend:
            tasks.append(asyncio.ensure_future(self._extend_leases()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(*tasks)
        # What the server said explains why it took no more, not the other way round.
        for task in reversed(tasks):
            if not task.cancelled():
                task.result()

    async def _send(self, stream: ClientStream) -> None:
        while True:
            message = self._machine.outgoing()
            if message is None:
                await self._to_send.wait()
            else:
                await stream.send(message)

    async def _receive(self, stream: ClientStream, progress: Callable[[], None]) -> None:
        while not self._machine.left:
            message = await stream.receive()
            if message is None:
                raise ConnectionLost("the server ended the conversation")
            await self._take(message)
            if isinstance(message, Deliveries | Settled):
                # Nothing else brings the work on, however often it is said.
                progress()

    async def _take(self, message: ServerMessage) -> None:
        for record in self._machine.receive(message):
            if not self._closing:
                self._inbox.append(ConnectedDelivery(self, record))
        self._arrived.notify()
        self._to_send.notify()

    async def _extend_leases(self) -> None:
        """Begin the leases of everything that is held again, before they end: at once where a session was lost."""
        while True:
            for place in self._machine.untouched:
                # Whether one was lost meanwhile shows when it is answered.
                self._give(Settlement(*place, Verdict.EXTEND))
            await asyncio.sleep(max(_SHORTEST_PAUSE, self.lease / _EXTENSIONS))


class _Deliveries(AsyncIterator[Delivery]):
    """The deliveries of a consumer, as they arrive; several of these take turns."""

    def __init__(self, consumer: ConnectedConsumer) -> None:
        self._consumer = consumer

    async def __anext__(self) -> Delivery:
        delivery = await self._consumer.next_delivery()
        if delivery is None:
            raise StopAsyncIteration
        return delivery


def _check_credit(records: int, size: int) -> None:
    if not 0 <= records <= _LARGEST_CREDIT:
        raise InvalidArgument(field="credit", problem=f"{records} is no number of records")
    if not 0 <= size <= _LARGEST_CREDIT:
        raise InvalidArgument(field="credit_bytes", problem=f"{size} is no number of bytes")


def _copy(error: TailraceError) -> TailraceError:
    """Return the same error anew: one that is raised in several tasks collects their tracebacks."""
    with suppress(TypeError):
        return error_from_wire(error.code, error.message, error.details())
    return error
