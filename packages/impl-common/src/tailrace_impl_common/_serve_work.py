"""The server's side of work."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from tailrace_common_api import (
    ProtocolError,
    QueuedRecord,
    Settlement,
    StorageFailure,
    StorageFull,
)
from tailrace_impl_common._cancelling import cancel_and_wait
from tailrace_impl_common._signal import Signal
from tailrace_impl_common._streams import ServerStream
from tailrace_impl_common.record_messages import (
    MESSAGE_BYTES,
    MESSAGE_RECORDS,
    Credit,
    CreditSet,
    Deliveries,
    Leave,
    Left,
    Settle,
    Settled,
    Work,
    WorkOpened,
)
from tailrace_server_api import Handed, RequestTelemetry, ResourceService, WorkSession

_MOST_UNANSWERED = 64
"""Messages with answers that a consumer may have sent and not been told the outcome of."""
_LAST_MESSAGE_TIMEOUT = 5.0
"""Time that a consumer which does not read may hold up its own end, in seconds."""


async def serve_work(
    request: Work, stream: ServerStream, *, service: ResourceService, telemetry: RequestTelemetry
) -> None:
    """Drive a consumer from its first message; see :func:`serve_conversation`.

    A consumer that says so leaves in order. Any other end, cancelling this too, means that it was lost: what is with it
    stays leased, so that it can still answer.
    """
    session = await service.records.work(request.queue)
    left = False
    try:
        session.set_credit(0, records=request.records, bytes=request.bytes)
        await stream.send(WorkOpened(consumer=session.consumer, content_type=session.content_type, lease=session.lease))
        await _WorkConversation(session, stream, telemetry).run()
        left = True
        await session.leave()
    finally:
        if not left:
            await session.release()
    await stream.send(Left())


class _WorkConversation:
    """One consumer up to its leave: a task hands out, a task receives, and a task answers what was received."""

    def __init__(self, session: WorkSession, stream: ServerStream, telemetry: RequestTelemetry) -> None:
        self._session = session
        self._stream = stream
        self._telemetry = telemetry
        self._settles: deque[Sequence[Settlement]] = deque()
        self._settling = 0
        self._changed = Signal()
        self._left = False
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Go on until the consumer leaves, and every answer before that was taken."""
        handing = asyncio.ensure_future(self._hand_out())
        settling = asyncio.ensure_future(self._settle_all())
        receiving = asyncio.ensure_future(self._receive())
        tasks = (handing, settling, receiving)
        try:
            running: set[asyncio.Future[None]] = set(tasks)
            while not settling.done():
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            # No message is cut: another one follows on the stream.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_MESSAGE_TIMEOUT), self._sending:
                    await cancel_and_wait(handing)
        finally:
            await cancel_and_wait(*tasks)

    async def _hand_out(self) -> None:
        while True:
            told = await self._session.next()
            async with self._sending:
                if isinstance(told, Handed):
                    for part in message_parts(told.records):
                        await self._stream.send(Deliveries(part))
                        self._telemetry.sent(sum(record.size for record in part))
                else:
                    await self._stream.send(CreditSet(told.sequence, told.outstanding, told.stalled))

    async def _receive(self) -> None:
        """Take what the consumer says until it leaves."""
        while (message := await self._stream.receive()) is not None:
            if isinstance(message, Settle):
                if self._settling >= _MOST_UNANSWERED:
                    raise ProtocolError(f"more than {_MOST_UNANSWERED} messages with answers at the same time")
                self._settling += 1
                self._settles.append(message.settlements)
                self._changed.notify()
            elif isinstance(message, Credit):
                self._session.set_credit(message.sequence, records=message.records, bytes=message.bytes)
            elif isinstance(message, Leave):
                self._left = True
                self._changed.notify()
                return
            else:
                raise ProtocolError(f"{type(message).__name__} received from a consumer")
        raise ProtocolError("the consumer ended the conversation without leaving")

    async def _settle_all(self) -> None:
        """Take answers, all that are there at once, and tell what became of them."""
        while True:
            if self._settles:
                together = list(self._settles)
                self._settles.clear()
                outcomes = await self._settle(together)
                async with self._sending:
                    for outcome in outcomes:
                        self._settling -= 1
                        await self._stream.send(outcome)
            elif self._left:
                return
            else:
                await self._changed.wait()

    async def _settle(self, together: Sequence[Sequence[Settlement]]) -> Sequence[Settled]:
        try:
            counted = await self._session.settle([settlement for part in together for settlement in part])
        except (StorageFailure, StorageFull) as error:
            return [Settled((), error.message) for _ in together]
        outcomes, first = [], 0
        for part in together:
            outcomes.append(Settled(tuple(counted[first : first + len(part)])))
            first += len(part)
        return outcomes


def message_parts(records: Sequence[QueuedRecord]) -> Sequence[tuple[QueuedRecord, ...]]:
    """Return records in parts that fit into one message each."""
    parts: list[tuple[QueuedRecord, ...]] = []
    start = size = 0
    for index, record in enumerate(records):
        if index > start and (size + record.size > MESSAGE_BYTES or index - start >= MESSAGE_RECORDS):
            parts.append(tuple(records[start:index]))
            start, size = index, 0
        size += record.size
    if start < len(records):
        parts.append(tuple(records[start:]))
    return parts
