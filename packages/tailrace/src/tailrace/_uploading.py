"""What `tailrace upload` does: from an input to a resource."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass

from tailrace._connect import client_urls, connect
from tailrace._messages import complain, describe, printable, say
from tailrace._progress import transfer_progress
from tailrace._running import Interrupted, Interruption
from tailrace._status_report import json_line, status_fields
from tailrace._upload_source import InputSource, Pieces
from tailrace_client_upload_api import UploadRequest, UploadSession, WhileAway
from tailrace_common_api import (
    AlreadyTerminal,
    DataLost,
    InternalError,
    Metadata,
    NotFound,
    ResourceFailed,
    ResourceState,
    Status,
    TailraceError,
    TokenRejected,
    UploadAborted,
    Visibility,
)
from tailrace_impl_common import ConnectedClient, LastingUpload, cancel_and_wait

_INTERRUPTED = "interrupted"
# Time to ask for the final status of an upload that failed, in seconds: the failure matters more.
_STATUS_TIMEOUT = 5.0
# What says that an upload cannot be continued.
_ENDED = (NotFound, TokenRejected, ResourceFailed, AlreadyTerminal, DataLost, UploadAborted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is uploaded, and how."""

    source: InputSource
    """Where the bytes come from."""
    metadata: Metadata
    visibility: Visibility
    while_away: WhileAway
    """What becomes of the input while the server is away."""
    state: str | None
    """File with whose help a later process can continue; ``None`` for none."""
    max_spooled: int
    """Most bytes that are kept beside the state file of an input that cannot be read again."""
    as_json: bool
    """Whether events are printed as JSON."""


async def upload_job(url: str, job: Job, interruption: Interruption) -> None:
    """Upload and print what happens.

    The first signal ends the input; for an atomic upload, and from the second one on, signals abort the upload.

    Raises:
        Interrupted: A signal aborted the upload.
        TailraceError: It failed.
        OSError: The input cannot be read.
    """
    report = _Report(job.as_json)
    # What it has to say of interruptions is said here, once and for people.
    logging.getLogger("tailrace_impl_common").addHandler(logging.NullHandler())
    try:
        async with connect(url) as client, job.source.open() as (pieces_from, stop):
            upload = _Upload(client, _prepare(client, job, url), report, interruption)
            interruption.handlers += [upload.abort] if job.visibility is Visibility.ATOMIC else [stop, upload.abort]
            await upload.run(pieces_from, job)
    except (Interrupted, asyncio.CancelledError):
        report.failed(UploadAborted(reason=_INTERRUPTED))
        raise
    except TailraceError as error:
        report.failed(error)
        raise
    except BrokenPipeError:
        # Nobody reads what would be said.
        raise
    except OSError as error:
        report.failed(InternalError(describe(error)))
        raise


def _prepare(client: ConnectedClient, job: Job, url: str) -> UploadSession:
    request = UploadRequest(
        metadata=job.metadata,
        visibility=job.visibility,
        while_away=job.while_away,
        prefix=job.source.prefix if job.source.readable_again else None,
    )
    if job.state is None:
        return client.start_upload(request)
    return LastingUpload(
        client, request, job.state, source=str(job.source), urls=client_urls(url), max_bytes=job.max_spooled
    )


class _Report:
    """What is printed on standard output."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self.last_status: Status | None = None

    def accepted(self, reference: str) -> None:
        say(json_line({"event": "accepted", "reference": reference}) if self._as_json else reference)

    def finished(self, status: Status) -> None:
        if self._as_json:
            say(json_line({"event": "finished", "status": status_fields(status)}))

    def failed(self, error: TailraceError) -> None:
        if self._as_json:
            status = None if self.last_status is None else status_fields(self.last_status)
            described = {"code": error.code, "message": str(error)}
            say(json_line({"event": "failed", "error": described, "status": status}))


class _Upload:
    """One upload and its end, whoever brings it about."""

    def __init__(
        self, client: ConnectedClient, session: UploadSession, report: _Report, interruption: Interruption
    ) -> None:
        self._client = client
        self._session = session
        self._report = report
        self._interruption = interruption
        self._sending: asyncio.Task[Status] | None = None
        self._aborting: asyncio.Task[Status | None] | None = None

    def abort(self) -> None:
        """Give the upload up; called by a signal, whatever is under way."""
        if self._sending is None:
            self._interruption.cancel()
        else:
            self._aborting = asyncio.create_task(self._abort(self._sending))

    async def _abort(self, sending: asyncio.Task[Status]) -> Status | None:
        # The session first: it must get to tell the server. Then what may be waiting for input.
        status = await self._session.abort(_INTERRUPTED)
        sending.cancel()
        return status

    async def run(self, pieces_from: Callable[[int], Pieces], job: Job) -> None:
        try:
            await self._session.open()
        except TailraceError as refusal:
            if job.state is not None:
                self._explain(refusal, job.state)
            raise
        sending = self._sending = asyncio.create_task(self._send(pieces_from, job))
        watching = asyncio.create_task(self._watch(sending))
        telling = asyncio.create_task(self._tell_of_interruptions())
        try:
            status = await sending
        except BaseException as caught:  # noqa: BLE001 - whatever it is, the server is told before it goes on
            await cancel_and_wait(sending)
            error = caught
            if isinstance(caught, asyncio.CancelledError) and watching.done() and not watching.cancelled():
                error = watching.exception() or caught
            await self._fail(error, job)
            if self._aborting is not None and isinstance(error, (TailraceError, asyncio.CancelledError)):
                raise Interrupted from None
            raise error from None
        finally:
            await cancel_and_wait(watching, telling)
        self._report.finished(status)

    async def _watch(self, sending: asyncio.Task[Status]) -> None:
        """End the sending when the server ends the upload, also while there is nothing to send."""
        try:
            async with aclosing(self._session.checkpoints()) as checkpoints:
                async for _ in checkpoints:
                    pass
        except TailraceError:
            sending.cancel()
            raise

    async def _tell_of_interruptions(self) -> None:
        away = False
        async with aclosing(self._session.interruptions()) as interruptions:
            async for error in interruptions:
                if error is None:
                    complain("the server is back")
                elif not away:
                    complain(f"the server is away, and asked again until it is back: {error}")
                away = error is not None

    async def _send(self, pieces_from: Callable[[int], Pieces], job: Job) -> Status:
        session, source = self._session, job.source
        self._report.accepted(session.reference)
        if isinstance(session, LastingUpload) and self._is_all_there(session, source):
            return await session.finish()
        size = await asyncio.to_thread(source.known_size)
        # What somebody types is not written over.
        typed = source.path is None and os.isatty(sys.stdin.fileno())
        with transfer_progress(job.metadata.name, size, shown=not typed) as progress:
            async with aclosing(pieces_from(session.offset if source.readable_again else 0)) as pieces:
                async for piece in pieces:
                    await session.write(piece)
                    progress(session.offset)
            return await session.finish()

    def _is_all_there(self, session: LastingUpload, source: InputSource) -> bool:
        """Say where an earlier process has stopped; return whether its input had ended."""
        if not session.resumed:
            return False
        if session.ended or (source.follow and session.status.state is ResourceState.COMPLETED):
            complain("the input had ended before; what is left of it is sent, and no more is read")
            return True
        complain(f"the upload is continued at offset {session.offset}")
        return False

    def _explain(self, error: BaseException, state: str) -> None:
        """Say what can be done with a state file."""
        if isinstance(error, _ENDED):
            complain(f"the upload of {printable(state)} has ended; remove the file to begin another one")
        elif isinstance(error, (TailraceError, OSError, asyncio.CancelledError)) and os.path.exists(state):
            complain(f"the same command with --state {printable(state)} continues this upload")

    async def _fail(self, error: BaseException, job: Job) -> None:
        """End the session, and find out how the resource ended; with a state file it is left open."""
        if self._aborting is not None:
            self._report.last_status = await self._aborting
            return
        if job.state is not None:
            with suppress(TailraceError):
                await self._session.detach()
            self._explain(error, job.state)
            return
        if isinstance(error, asyncio.CancelledError):
            self._report.last_status = await self._session.abort(_INTERRUPTED)
            return
        status = await self._session.abort(f"{type(error).__name__}: {error}")
        if status is None:
            # The server ended the upload, and knows how.
            with suppress(TailraceError, TimeoutError):
                async with asyncio.timeout(_STATUS_TIMEOUT):
                    status = await self._client.status(self._session.id)
        self._report.last_status = status
