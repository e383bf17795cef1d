"""The server's side of a bulk."""

from __future__ import annotations

import asyncio
import logging

from tailrace_common_api import ProtocolError
from tailrace_impl_common._bulk_machine import BulkReceiver
from tailrace_impl_common._cancelling import cancel_and_wait
from tailrace_impl_common._streams import ServerStream
from tailrace_impl_common.record_messages import BulkCommitted, BulkOpened, CommitBulk, OpenBulk
from tailrace_server_api import BulkIngest, RequestTelemetry, ResourceService

logger = logging.getLogger(__name__)

_PURGE_TIMEOUT = 2.0
"""Time that the purge of a bulk may hold up the error that ended it, in seconds; it goes on in the background."""
_LAST_WINDOW_TIMEOUT = 5.0
"""Time that a client which does not read may hold up the end of a conversation, in seconds."""


async def serve_bulk(
    request: OpenBulk, stream: ServerStream, *, service: ResourceService, telemetry: RequestTelemetry
) -> None:
    """Drive a bulk from its first message; see :func:`serve_conversation`.

    Whatever ends the conversation before the commit, cancelling it too, rolls the bulk back. Cancelling it behind that
    leaves the commit alone: the idempotency key tells what became of it.
    """
    ingest = await service.records.begin_bulk(
        request.collection,
        content_type=request.content_type,
        key=request.idempotency_key,
        reporting=request.reporting,
        priority=request.priority,
    )
    try:
        commit = await _BulkConversation(ingest, stream, telemetry).run()
        if commit is None:
            return
        result = await ingest.commit(records=commit.records, digest=commit.digest)
    except BaseException:
        await _purge(ingest)
        raise
    await stream.send(BulkCommitted(result))


async def _purge(ingest: BulkIngest) -> None:
    """Roll a bulk back. Never raises but for a cancellation, so that it hides no error."""
    purge = asyncio.ensure_future(ingest.rollback())
    try:
        await asyncio.wait((purge,), timeout=_PURGE_TIMEOUT)
    finally:
        await cancel_and_wait(purge)
    error = None if purge.cancelled() else purge.exception()
    if error is not None:
        # What is staged still is the sweeper's.
        logger.warning("a bulk could not be rolled back: %s", ascii(str(error)), extra={"bulk": ingest.id})


class _BulkConversation:
    """One bulk up to its commit: a task that receives and a task that reports the window."""

    def __init__(self, ingest: BulkIngest, stream: ServerStream, telemetry: RequestTelemetry) -> None:
        self._ingest = ingest
        self._stream = stream
        self._count = telemetry.received
        self._granted = 0 if ingest.result is not None else ingest.granted
        self._machine = BulkReceiver(ingest.limits, self._granted)
        self._waiting = False
        self._stopping = False

    async def run(self) -> CommitBulk | None:
        """Take records until the client commits; ``None`` when an earlier bulk with the same key has."""
        ingest = self._ingest
        await self._stream.send(
            BulkOpened(
                id=ingest.id,
                content_type=ingest.content_type,
                limits=ingest.limits,
                until=self._granted,
                result=ingest.result,
            )
        )
        if ingest.result is not None:
            return None
        receiver = asyncio.ensure_future(self._receive())
        reporter = asyncio.ensure_future(self._report())
        try:
            await asyncio.wait((receiver, reporter), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._stop(reporter, receiver)
        # What ended the bulk explains an end of the connection, not the other way round.
        if not reporter.cancelled():
            reporter.result()
        return receiver.result()

    async def _receive(self) -> CommitBulk:
        receive, check, submit, count = self._stream.receive, self._machine.receive, self._ingest.submit, self._count
        machine = self._machine
        while (message := await receive()) is not None:
            before = machine.received
            known = check(message)
            if isinstance(known, CommitBulk):
                return known
            submit(known)
            count(machine.received - before)
        raise ProtocolError("the client ended the bulk without its commit")

    async def _report(self) -> None:
        """Tell the client how far it may send, whenever that has changed by enough."""
        while not self._stopping:
            self._waiting = True
            self._granted = await self._ingest.changed(self._granted)
            self._waiting = False
            window = self._machine.grant(self._granted)
            if window is not None:
                await self._stream.send(window)

    async def _stop(self, reporter: asyncio.Future[None], receiver: asyncio.Future[CommitBulk]) -> None:
        """End both, the reporter without cutting a message that it is sending: another one follows on the stream."""
        self._stopping = True
        if self._waiting:
            reporter.cancel()
        try:
            await asyncio.wait((reporter,), timeout=_LAST_WINDOW_TIMEOUT)
        finally:
            await cancel_and_wait(reporter, receiver)
