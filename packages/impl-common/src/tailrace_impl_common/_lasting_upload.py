"""Uploads that outlive their process."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from tailrace_client_upload_api import WAIT, Buffer, ReopenRequest, UploadRequest, UploadSession
from tailrace_common_api import (
    AlreadyTerminal,
    ConfigurationError,
    DataLost,
    ResourceFailed,
    ResourceState,
    SourceChanged,
    Status,
    TailraceError,
)
from tailrace_impl_common._buffered_upload import BufferedUpload, local_failure, run_to_end
from tailrace_impl_common._client_upload import ConnectedUpload
from tailrace_impl_common._delegating_upload import DelegatingUpload
from tailrace_impl_common._head import HeadHasher
from tailrace_impl_common._segment_spool import SegmentSpool
from tailrace_impl_common._upload_state import SavedUpload, UploadStateFile
from tailrace_impl_common.messages import Opened

if TYPE_CHECKING:
    from tailrace_impl_common._client import ConnectedClient

DEFAULT_SPOOL_BYTES = 1024**3
"""Most bytes that are kept of a source that cannot be read again, unless told otherwise."""
_LEAVE_TIMEOUT = 5.0
"""Time for what was handed over to leave when the upload is left open, in seconds; a later process sends it else."""


class SpooledUpload(ConnectedUpload):
    """The continuation of an upload of which a spool has what the server may lack, and the hash states among it."""

    spool: SegmentSpool

    async def _hash_prefix(self, opened: Opened) -> HeadHasher:
        state = await asyncio.to_thread(self.spool.state_at, opened.offset)
        if state is None and opened.offset < self.spool.start:
            with suppress(DataLost):
                await self._give_up(opened)
            raise DataLost(announced=self.spool.start, size=opened.offset)
        if state is not None and state.head() == opened.head:
            return state
        if state is None:
            problem = f"{self.spool.end} bytes of it were read where the server has {opened.offset}"
        else:
            problem = f"its first {opened.offset} bytes have another head than the server's"
        raise SourceChanged(offset=await self._last_common(opened, self.spool.samples()), problem=problem)


class LastingUpload(DelegatingUpload):
    """An upload that a later process can continue, with the help of a state file.

    Whatever happens to this process, the next one that opens a ``LastingUpload`` with the same state file goes on with
    the same resource, as long as the server's grace period allows. There are two kinds of sources:

    - One that can be read again: ``request.prefix`` yields its first bytes, and the caller goes on writing from
      :attr:`offset`. What the server has is compared with it first.
    - One that cannot, such as a pipe: without a prefix everything that is written goes to a bounded spool beside the
      state file before it is sent, and what is announced is dropped from there. Writing waits while the spool is full.
      The next process sends what is left of it, and appends what it writes itself. A write has happened when
      :meth:`write` has returned; of one that was interrupted, a beginning may be kept.

    The state file is there until the upload is complete or was aborted. Leaving the context manager with an exception
    leaves the upload open, and the state file where it is; :meth:`abort` ends both. The file holds the upload token and
    is readable by its owner only; a second process that uses it at the same time is refused.
    """

    def __init__(
        self,
        client: ConnectedClient,
        request: UploadRequest,
        state: UploadStateFile | str | os.PathLike[str],
        *,
        source: str = "",
        urls: Sequence[str] = (),
        max_bytes: int = DEFAULT_SPOOL_BYTES,
    ) -> None:
        """Prepare the upload; nothing is read or sent yet.

        Args:
            client: Client of the server.
            request: The upload; its idempotency key and its policy are not used.
            state: The state file.
            source: What is uploaded; a state that was written for another source is refused.
            urls: URLs of the server, to be written into the state.
            max_bytes: Most bytes of the spool; at least 1 MiB.

        Raises:
            InvalidArgument: ``max_bytes`` is less.
        """
        super().__init__(client.start_upload(replace(request, while_away=WAIT)))
        self._client = client
        self._request = request
        self._state = state if isinstance(state, UploadStateFile) else UploadStateFile(state)
        self._source = source
        self._urls = tuple(urls)
        self._spool = None if request.prefix is not None else SegmentSpool(self._state.spool_directory, max_bytes)
        self._saved: SavedUpload | None = None
        self._resumed = False
        self._opened = False
        self._left = False
        self._released = False

    @property
    def resumed(self) -> bool:
        """Whether this continues what an earlier process has begun."""
        return self._resumed

    @property
    def ended(self) -> bool:
        """Whether the source had ended for an earlier process: nothing more is to be written."""
        return self._saved is not None and self._saved.ended

    async def open(self) -> None:
        """Open the upload, or the one of an earlier process.

        Raises:
            ConfigurationError: The state file is in use, or was written for another source.
            IntegrityError: The state file or the spool is damaged.
            ResourceFailed, NotFound, TokenRejected: The upload has ended or expired. The state file stays.
            SourceChanged: The source is not the one that was uploaded; its offset is the last common one.
            DataLost: The server has less than it had announced.
            StorageFull, StorageFailure: State file or spool cannot be written.
            TailraceError: As for :meth:`UploadSession.open`.
        """
        if self._opened:
            return
        try:
            saved = await run_to_end(self._take_state)
            self._session = self._session_of(saved)
            await self._session.open()
            await self._settle_opening(saved)
        except BaseException as error:
            with suppress(TailraceError):
                await self._leave()
            if isinstance(error, OSError) and not isinstance(error, TailraceError):
                raise local_failure(f"the state file {str(self._state.path)!a}", error) from error
            raise
        self._opened = True

    def _take_state(self) -> SavedUpload:
        """Lock and read the state, or begin one; open the spool. Blocking."""
        self._state.acquire()
        saved = self._state.load()
        self._resumed = saved is not None
        if saved is None:
            saved = SavedUpload(urls=self._urls, source=self._source, key=secrets.token_hex(16))
            # What lies there without a state belongs to nothing.
            SegmentSpool(self._state.spool_directory, DEFAULT_SPOOL_BYTES).remove()
            self._state.save(saved)
        elif saved.source != self._source:
            problem = f"{str(self._state.path)!a} belongs to an upload of {saved.source!a}, not of {self._source!a}"
            raise ConfigurationError(field="state", problem=problem)
        if self._spool is not None:
            self._spool.open()
        self._saved = saved
        return saved

    def _session_of(self, saved: SavedUpload) -> UploadSession:
        session: UploadSession
        prefix, spool = self._request.prefix, self._spool
        if saved.id is None or saved.token is None:
            session = self._client.start_upload(replace(self._request, idempotency_key=saved.key, while_away=WAIT))
        elif spool is None:
            session = self._client.resume_upload(ReopenRequest(id=saved.id, token=saved.token, prefix=prefix))
        else:
            session = self._client.resume_spooled(saved.id, saved.token, spool)
        if spool is None:
            return session

        def kept(offset: int) -> SegmentSpool:
            spool.seek(offset)
            return spool

        return BufferedUpload(session, kept)

    async def _settle_opening(self, saved: SavedUpload) -> None:
        session = self._session
        status = session.status
        if status.state is ResourceState.FAILED:
            raise ResourceFailed(id=status.id, reason=status.reason or "", size=status.size)
        if status.state is ResourceState.COMPLETED:
            await self._check_completed(status)
        self._saved = replace(saved, id=session.id, token=session.token, reference=session.reference)
        if self._saved != saved:
            await run_to_end(self._save)

    async def _check_completed(self, status: Status) -> None:
        """Prove that what was completed is this source: all that was lost then is the answer."""
        if self._spool is not None:
            hasher = await asyncio.to_thread(self._spool.state_at, status.size)
        else:
            assert self._request.prefix is not None
            hasher = HeadHasher()
            async for piece in self._request.prefix(status.size):
                hasher.update(piece)
        if hasher is None or (hasher.size, hasher.head()) != (status.size, status.head):
            raise AlreadyTerminal(id=status.id, state=status.state.value)

    def _save(self) -> None:
        assert self._saved is not None
        self._state.save(self._saved)

    async def write(self, data: Buffer) -> None:
        if self._opened and self._session.status.state is ResourceState.COMPLETED:
            raise AlreadyTerminal(id=self.id, state=ResourceState.COMPLETED.value)
        await self._session.write(data)

    async def finish(self) -> Status:
        if self._saved is not None and not self._saved.ended and self._spool is not None:
            self._saved = replace(self._saved, ended=True)
            await run_to_end(self._save)
        status = await self._session.finish()
        await run_to_end(self._remove)
        return status

    async def abort(self, reason: str = "aborted by the client") -> Status | None:
        status = await self._session.abort(reason)
        await run_to_end(self._remove)
        return status

    def _remove(self) -> None:
        """Remove every trace; the state first, since without it the spool means nothing. Blocking."""
        if self._released:
            return
        self._state.remove()
        if self._spool is not None:
            self._spool.remove()
        self._release()

    def _release(self) -> None:
        self._released = True
        if self._spool is not None:
            self._spool.close()
        self._state.release()

    async def detach(self) -> None:
        """End the session and leave the upload open, for a later process.

        Waits until what was written is announced, for a few seconds: the spool keeps it, or the source has it.
        """
        if self._left:
            return
        self._left = True
        try:
            await self._leave()
        finally:
            await run_to_end(self._release)

    async def _leave(self) -> None:
        try:
            if self._opened:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LEAVE_TIMEOUT):
                        await self._session.detach()
        finally:
            await run_to_end(self._release)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._left or self._released:
            return
        try:
            if exc is None:
                await self.finish()
        finally:
            with suppress(TailraceError):
                await self.detach()
