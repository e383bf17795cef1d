"""What `tailrace upload` does: from an input to a resource."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

from tailrace._connect import connect
from tailrace._input import StoppableInput
from tailrace._messages import describe, say
from tailrace._progress import transfer_progress
from tailrace._running import Interrupted, Interruption
from tailrace._status_report import json_line, status_fields
from tailrace_client_upload_api import UploadRequest, UploadSession
from tailrace_common_api import InternalError, Metadata, Status, TailraceError, UploadAborted, Visibility
from tailrace_impl_common import (
    ConnectedClient,
    GrowingFile,
    SourceRestarted,
    Transcoder,
    cancel_and_wait,
    iter_source,
)

_INTERRUPTED = "interrupted"
# Time to ask for the final status of an upload that failed, in seconds: the failure matters more.
_STATUS_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is uploaded, and how."""

    path: str | None
    """File; ``None`` for standard input."""
    metadata: Metadata
    visibility: Visibility
    encoding: str | None
    """Encoding of the input; ``None`` to upload its bytes as they are."""
    follow: bool
    """Whether the file is followed as it grows."""
    until_exit: int | None
    """Process whose end ends the following; ``None`` for none."""
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
    try:
        async with connect(url) as client, _open_input(job) as (pieces, stop):
            session = client.start_upload(UploadRequest(metadata=job.metadata, visibility=job.visibility))
            upload = _Upload(client, session, report, interruption)
            interruption.handlers += [upload.abort] if job.visibility is Visibility.ATOMIC else [stop, upload.abort]
            await upload.run(pieces, job)
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

    async def run(self, pieces: AsyncGenerator[bytes, None], job: Job) -> None:
        await self._session.open()
        sending = self._sending = asyncio.create_task(self._send(pieces, job))
        watching = asyncio.create_task(self._watch(sending))
        try:
            status = await sending
        except BaseException as caught:  # noqa: BLE001 - whatever it is, the server is told before it goes on
            await cancel_and_wait(sending)
            error = caught
            if isinstance(caught, asyncio.CancelledError) and watching.done() and not watching.cancelled():
                error = watching.exception() or caught
            await self._fail(error)
            if self._aborting is not None and isinstance(error, (TailraceError, asyncio.CancelledError)):
                raise Interrupted from None
            raise error from None
        finally:
            await cancel_and_wait(watching)
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

    async def _send(self, pieces: AsyncGenerator[bytes, None], job: Job) -> Status:
        session = self._session
        self._report.accepted(session.reference)
        size = await asyncio.to_thread(_known_size, job)
        # What somebody types is not written over.
        typed = job.path is None and os.isatty(sys.stdin.fileno())
        with transfer_progress(job.metadata.name, size, shown=not typed) as progress:
            async with aclosing(pieces):
                async for piece in pieces:
                    await session.write(piece)
                    progress(session.offset)
            return await session.finish()

    async def _fail(self, error: BaseException) -> None:
        """End the session, and find out how the resource ended."""
        if self._aborting is not None:
            self._report.last_status = await self._aborting
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


def _known_size(job: Job) -> int | None:
    """Return how many bytes the upload will probably have; ``None`` when that is not known. Blocking."""
    if job.follow or job.path is None or job.encoding is not None:
        return None
    return os.stat(job.path).st_size or None


@asynccontextmanager
async def _open_input(job: Job) -> AsyncGenerator[tuple[AsyncGenerator[bytes, None], Callable[[], None]], None]:
    """Open the input; yield its bytes and what ends it early."""
    if job.follow:
        assert job.path is not None
        file = GrowingFile(job.path, until_exit=job.until_exit)
        yield _transcoded(_file_pieces(file), job.encoding), file.stop
        return
    if job.path is None:
        descriptor = sys.stdin.fileno()
    else:
        # Opening a pipe without waiting for its writer; a file does not care.
        descriptor = await asyncio.to_thread(os.open, job.path, os.O_RDONLY | os.O_NONBLOCK)
    source = StoppableInput(descriptor)
    try:
        yield _transcoded(_thread_pieces(source, job.path or "standard input"), job.encoding), source.stop
    finally:
        source.close()


async def _file_pieces(file: GrowingFile) -> AsyncGenerator[bytes, None]:
    async with aclosing(file.pieces()) as pieces:
        async for piece in pieces:
            # Under the policy in use, a file that was rotated is an error instead.
            assert not isinstance(piece, SourceRestarted)
            yield piece


async def _thread_pieces(source: StoppableInput, name: str) -> AsyncGenerator[bytes, None]:
    async with aclosing(iter_source(_named_pieces(source, name))) as pieces:
        async for piece in pieces:
            yield bytes(piece)


def _named_pieces(source: StoppableInput, name: str) -> Generator[bytes, None, None]:
    """Let errors say which input could not be read."""
    try:
        yield from source.pieces()
    except OSError as error:
        error.filename = error.filename or name
        raise


async def _transcoded(pieces: AsyncGenerator[bytes, None], encoding: str | None) -> AsyncGenerator[bytes, None]:
    transcoder = None if encoding is None else Transcoder(encoding)
    async with aclosing(pieces):
        async for piece in pieces:
            yield piece if transcoder is None else transcoder.feed(piece)
    if transcoder is not None:
        yield transcoder.finish()
