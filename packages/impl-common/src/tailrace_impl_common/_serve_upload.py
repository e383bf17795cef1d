"""The server's side of an upload."""

from __future__ import annotations

import asyncio
from typing import Any

from tailrace_common_api import IntegrityError, Limits, Status
from tailrace_impl_common._cancelling import cancel_and_wait
from tailrace_impl_common._statuses import status_under
from tailrace_impl_common._streams import ServerStream
from tailrace_impl_common._upload_machine import UploadReceiver
from tailrace_impl_common.messages import Abort, Chunk, Finish, Opened, OpenUpload, ReopenUpload, ServerMessage
from tailrace_server_api import Progress, RequestTelemetry, ResourceService, UploadIngest


async def serve_upload(
    request: OpenUpload | ReopenUpload,
    stream: ServerStream,
    *,
    service: ResourceService,
    base: str,
    telemetry: RequestTelemetry,
) -> None:
    """Drive an upload from its first message; see :func:`serve_conversation`.

    The upload stays open for its grace period when the conversation ends without ``Finish`` or ``Abort``.
    """
    if isinstance(request, OpenUpload):
        ingest = await service.create(
            request.metadata,
            visibility=request.visibility,
            length=request.length,
            sha256=request.sha256,
            idempotency_key=request.idempotency_key,
        )
    else:
        ingest = await service.reopen(request.id, request.token)
    try:
        await _UploadConversation(ingest, stream, service.limits, base, telemetry).run()
    except IntegrityError as error:
        # Order is checked when a chunk arrives, its bytes where they are stored: a chunk before the one that does not
        # follow may turn out to be the bad one.
        await ingest.release()
        proven = min(error.offset, ingest.snapshot.size)
        if proven < error.offset:
            raise type(error)(offset=proven, problem=error.problem) from None
        raise
    finally:
        await ingest.release()


_LAST_REPORT_TIMEOUT = 5.0
"""Time that a client which does not read may hold up the end of a conversation, in seconds."""


class _UploadConversation:
    """One session: a task that receives and a task that reports progress, over one machine."""

    def __init__(
        self, ingest: UploadIngest, stream: ServerStream, limits: Limits, base: str, telemetry: RequestTelemetry
    ) -> None:
        self._ingest = ingest
        self._stream = stream
        self._base = base
        self._limits = limits
        self._count = telemetry.received
        self._machine = UploadReceiver(limits)
        self._told = ingest.progress
        self._waiting = False
        self._stopping = False

    async def run(self) -> None:
        snapshot = self._ingest.snapshot
        ended = snapshot.state.terminal
        self._told = self._ingest.progress
        opened = Opened(
            status=status_under(self._ingest.status(), self._base),
            token="" if ended else self._ingest.token,
            epoch=snapshot.epoch,
            offset=snapshot.size,
            newlines=snapshot.newlines,
            head=snapshot.head,
            until=snapshot.size if ended else self._told.until,
            limits=self._limits,
        )
        self._machine.open(opened)
        await self._stream.send(opened)
        if ended:
            return
        last = await self._receive_and_report()
        if isinstance(last, Finish):
            status: Status | None = await self._complete(last)
        elif isinstance(last, Abort):
            status = await self._ingest.abort(last.reason)
        else:
            return
        if status is not None:
            status = status_under(status, self._base)
        await self._stream.send(self._machine.finished(status))

    async def _receive_and_report(self) -> Finish | Abort | None:
        """Take chunks and report progress until the client has ended the input, or either fails."""
        receiver = asyncio.ensure_future(self._receive_data())
        reporter = asyncio.ensure_future(self._report_progress())
        try:
            await asyncio.wait((receiver, reporter), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._stop(reporter, receiver)
        # What ended the upload explains an end of the connection, not the other way round.
        if not reporter.cancelled():
            reporter.result()
        return receiver.result()

    async def _complete(self, finish: Finish) -> Status:
        """Complete the upload while the client is still told what is announced."""
        completion = asyncio.ensure_future(self._ingest.finish(size=finish.size, head=finish.head))
        reporter = asyncio.ensure_future(self._report_progress())
        try:
            await asyncio.wait((completion,))
        finally:
            await self._stop(reporter, completion)
        if not reporter.cancelled():
            reporter.exception()
        return completion.result()

    async def _receive_data(self) -> Finish | Abort | None:
        """Take chunks until the client ends the input; ``None`` when it left without doing so."""
        receive, check, submit, count = self._stream.receive, self._machine.receive, self._ingest.submit, self._count
        while True:
            message = await receive()
            if message is None:
                return None
            check(message)
            if isinstance(message, Chunk):
                submit(message.data, hash=message.hash)
                count(len(message.data))
                # The buffer is the storage's from here on; nothing may keep it alive while the next one is awaited.
                del message
            elif isinstance(message, Finish | Abort):
                return message

    async def _report_progress(self) -> None:
        """Tell the client how far it may send and what is announced, whenever either changes."""
        self._stopping = False
        while not self._stopping:
            self._waiting = True
            progress = await self._ingest.changed(self._told)
            self._waiting = False
            await self._tell(progress)

    async def _stop(self, reporter: asyncio.Future[None], other: asyncio.Future[Any]) -> None:
        """End both, the reporter without cutting a message that it is sending: another one follows on the stream."""
        self._stopping = True
        if self._waiting:
            reporter.cancel()
        try:
            await asyncio.wait((reporter,), timeout=_LAST_REPORT_TIMEOUT)
        finally:
            await cancel_and_wait(reporter, other)

    async def _tell(self, progress: Progress) -> None:
        known = self._told
        self._told = progress
        news: list[ServerMessage] = []
        if progress.checkpoint != known.checkpoint:
            news.append(progress.checkpoint)
        window = self._machine.grant(progress.until)
        if window is not None:
            news.append(window)
        if news:
            await self._stream.send_together(*news)
