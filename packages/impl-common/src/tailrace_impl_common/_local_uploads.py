"""Uploads without a server: into a local directory, or into nothing."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import re
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tailrace_client_upload_api import Buffer, ReopenRequest, UploadClient, UploadRequest, UploadSession
from tailrace_common_api import (
    MAX_OFFSET,
    MEBIBYTE,
    Checkpoint,
    DigestMismatch,
    LengthMismatch,
    Limits,
    NotFound,
    ResourceState,
    Status,
    StorageFailure,
    StorageFull,
    TailraceError,
    UploadAborted,
    Visibility,
)
from tailrace_impl_common._buffers import flat
from tailrace_impl_common._head import EMPTY_HEAD, HeadHasher
from tailrace_impl_common._ids import IdGenerator
from tailrace_impl_common._lines import line_count
from tailrace_impl_common._signal import Signal

_WINDOW = 4 * MEBIBYTE
_MOST_NAME_BYTES = 200

_LIMITS = Limits(
    chunk_size=MEBIBYTE,
    upload_window=_WINDOW,
    upload_grace=0.0,
    max_download_window=_WINDOW,
    max_resource_size=MAX_OFFSET,
    max_page_size=1,
    max_heads=1,
    max_context_bytes=MAX_OFFSET,
    max_context_resources=MAX_OFFSET,
    max_storage_bytes=MAX_OFFSET,
    max_uploads=MAX_OFFSET,
    max_contexts=0,
    max_requests=MAX_OFFSET,
    context_required=False,
)


class _LocalUpload(UploadSession):
    """What uploads without a server share: one task stores what was written, in a thread."""

    def __init__(self, request: UploadRequest, id: str, created_at: float, reference: str) -> None:
        self._request = request
        self._hasher = HeadHasher(count_newlines=request.metadata.lines)
        self._sha256 = hashlib.sha256() if request.sha256 is not None else None
        self._status = Status(
            reference=reference,
            id=id,
            version=0,
            state=ResourceState.INITIATED,
            size=0,
            lines=0 if request.metadata.lines else None,
            head=EMPTY_HEAD,
            reason=None,
            alternatives=(reference,),
            metadata=request.metadata,
            visibility=request.visibility,
            created_at=created_at,
        )
        self._pending: list[Buffer] = []
        self._pending_size = 0
        self._offset = 0
        self._ending = False
        self._announced = Checkpoint(0, 0, EMPTY_HEAD)
        self._error: TailraceError | None = None
        self._opened = False
        self._work = asyncio.Event()
        self._changed = Signal()
        self._task: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None

    @abstractmethod
    def _start(self) -> None:
        """Make room for the bytes; runs in a thread, may raise ``OSError``."""

    @abstractmethod
    def _store(self, data: Buffer) -> None:
        """Store the next bytes; runs in a thread, may raise ``OSError``."""

    @abstractmethod
    def _conclude(self, status: Status) -> None:
        """Make the final status durable; runs in a thread, may raise ``OSError``."""

    @abstractmethod
    def _discard(self) -> None:
        """Remove everything; runs in a thread, may raise ``OSError``."""

    @property
    def reference(self) -> str:
        return self._status.reference

    @property
    def id(self) -> str:
        return self._status.id

    @property
    def token(self) -> str:
        return ""

    @property
    def epoch(self) -> int:
        return 1

    @property
    def limits(self) -> Limits:
        return _LIMITS

    @property
    def offset(self) -> int:
        return self._offset

    @property
    def announced(self) -> Checkpoint:
        return self._announced

    @property
    def status(self) -> Status:
        return self._status

    async def open(self) -> None:
        if self._opened:
            return
        await self._in_thread(self._start)
        self._opened = True
        self._task = asyncio.create_task(self._store_pending(), name="tailrace local upload")

    async def write(self, data: Buffer) -> None:
        self._check()
        data = flat(data)
        if not data:
            return
        declared = self._request.length
        if declared is not None and self.offset + len(data) > declared:
            error = LengthMismatch(declared=declared, actual=self.offset + len(data))
            await self._end(ResourceState.FAILED, str(error))
            raise error
        self._pending.append(data if type(data) is bytes else bytes(data))
        self._pending_size += len(data)
        self._offset += len(data)
        self._work.set()
        while self._pending_size > MEBIBYTE:
            await self._changed.wait()
            self._check()

    async def flush(self) -> Checkpoint:
        target = self.offset
        while self._announced.size < target:
            if self._error is not None:
                raise self._error
            if self._status.state.terminal:
                raise UploadAborted(reason=self._status.reason or "the upload has ended")
            await self._changed.wait()
        return self._announced

    async def finish(self) -> Status:
        if self._status.state is ResourceState.COMPLETED:
            return self._status
        self._check()
        await self.flush()
        declared = self._request.length
        error: TailraceError | None = None
        if declared is not None and self.offset != declared:
            error = LengthMismatch(declared=declared, actual=self.offset)
        elif self._sha256 is not None and self._sha256.digest() != self._request.sha256:
            assert self._request.sha256 is not None
            error = DigestMismatch(declared=self._request.sha256.hex(), actual=self._sha256.hexdigest())
        if error is not None:
            await self._end(ResourceState.FAILED, str(error))
            raise error
        await self._end(ResourceState.COMPLETED, None)
        return self._status

    async def abort(self, reason: str = "aborted by the client") -> Status | None:
        if self._opened and not self._status.state.terminal:
            await self._end(ResourceState.FAILED, reason)
        if self._status.state.terminal and self._error is None:
            self._error = UploadAborted(reason=reason)
        return self._status if self._request.visibility is Visibility.LIVE and self._opened else None

    async def checkpoints(self) -> AsyncGenerator[Checkpoint, None]:
        known: Checkpoint | None = None
        while True:
            if self._announced != known:
                known = self._announced
                yield known
            elif self._error is not None:
                raise self._error
            elif self._status.state.terminal:
                return
            else:
                await self._changed.wait()

    async def detach(self) -> None:
        """Store what was written and abort: there is no server to keep the upload open."""
        if self._opened and not self._status.state.terminal:
            await self.flush()
            await self.abort("the session was detached")

    def _check(self) -> None:
        if not self._opened:
            raise RuntimeError("the upload is not open; enter it with `async with`")
        if self._error is not None:
            raise self._error
        if self._status.state.terminal:
            raise UploadAborted(reason="the upload has ended")

    async def _in_thread(self, work: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(work)
        except OSError as exc:
            failure = StorageFull if exc.errno in (errno.ENOSPC, errno.EDQUOT) else StorageFailure
            raise failure(f"{self.reference}: {exc.strerror or exc}") from exc

    async def _store_pending(self) -> None:
        """Store what was written, all there is at a time, until the upload ends."""
        while True:
            while not self._pending:
                if self._ending:
                    return
                self._work.clear()
                await self._work.wait()
            parts, self._pending = self._pending, []
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            try:
                await self._in_thread(partial(self._take, data))
            except TailraceError as exc:
                self._error = exc
                self._changed.notify()
                return
            self._pending_size = max(0, self._pending_size - len(data))
            self._announce(ResourceState.IN_PROGRESS, None)

    def _take(self, data: Buffer) -> None:
        self._store(data)
        self._hasher.update(data)
        if self._sha256 is not None:
            self._sha256.update(data)

    def _announce(self, state: ResourceState, reason: str | None) -> None:
        self._status = self._status_as(state, reason)
        self._announced = Checkpoint(self._hasher.size, self._hasher.newlines, self._status.head)
        self._changed.notify()

    def _status_as(self, state: ResourceState, reason: str | None) -> Status:
        hasher = self._hasher
        lines = line_count(
            hasher.newlines, hasher.size, ends_with_newline=hasher.ends_with_newline, terminal=state.terminal
        )
        return replace(
            self._status,
            version=self._status.version + 1,
            state=state,
            size=hasher.size,
            lines=lines if self._request.metadata.lines else None,
            head=hasher.head(),
            reason=reason,
        )

    async def _end(self, state: ResourceState, reason: str | None) -> None:
        """End the upload; the first end counts, and goes on when who asked for it is cancelled."""
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle(state, reason), name="tailrace local upload end")
        await asyncio.shield(self._settling)

    async def _settle(self, state: ResourceState, reason: str | None) -> None:
        self._pending.clear()
        self._pending_size = 0
        if self._task is not None:
            # Not cancelled: the thread that stores would go on behind the file's end.
            self._ending = True
            self._work.set()
            await asyncio.wait((self._task,))
        self._offset = self._hasher.size
        try:
            if state is ResourceState.FAILED and self._request.visibility is Visibility.ATOMIC:
                await self._in_thread(self._discard)
            else:
                await self._in_thread(partial(self._conclude, self._status_as(state, reason)))
        except TailraceError as exc:
            self._error = self._error or exc
            self._announce(ResourceState.FAILED, exc.message)
            raise
        self._announce(state, reason)


class _DirectoryUpload(_LocalUpload):
    """Writes one file, and beside it the final status as JSON."""

    def __init__(self, request: UploadRequest, id: str, created_at: float, path: Path) -> None:
        super().__init__(request, id, created_at, path.absolute().as_uri())
        self._path = path
        atomic = request.visibility is Visibility.ATOMIC
        self._part = path.with_name(path.name + ".part") if atomic else path
        self._file: BinaryIO | None = None

    def _start(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._part, "xb", buffering=0)  # noqa: SIM115 - open for as long as the upload is

    def _store(self, data: Buffer) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def _conclude(self, status: Status) -> None:
        assert self._file is not None
        with self._file:
            os.fsync(self._file.fileno())
        if self._part != self._path:
            self._part.rename(self._path)
        summary = {
            "id": status.id,
            "state": status.state.value,
            "size": status.size,
            "lines": status.lines,
            "head": status.head.hex(),
            "reason": status.reason,
            "name": status.metadata.name,
            "content_type": status.metadata.content_type,
            "labels": dict(status.metadata.labels),
            "context": status.metadata.context,
        }
        self._path.with_name(self._path.name + ".status.json").write_text(json.dumps(summary, indent=2) + "\n")

    def _discard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)


class _DiscardingUpload(_LocalUpload):
    """Counts and hashes what is written, and keeps nothing."""

    def _start(self) -> None:
        return

    def _store(self, data: Buffer) -> None:
        return

    def _conclude(self, status: Status) -> None:
        return

    def _discard(self) -> None:
        return


class _LocalClient(UploadClient):
    def __init__(self) -> None:
        self._ids = IdGenerator()

    def resume_upload(self, request: ReopenRequest) -> UploadSession:
        """Refuse: without a server no upload outlives its session.

        Raises:
            NotFound: Always.
        """
        raise NotFound(id=request.id)


class DirectoryClient(_LocalClient):
    """Uploads into files of a local directory, one each: ``<id>-<name>``, and ``….status.json`` once it has ended.

    The file of a live upload grows as it is written; that of an atomic one bears the suffix ``.part`` until it is
    complete. An upload that is aborted keeps what was written, unless it is atomic. Needs no server.
    """

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which is created with the first upload; a relative one is settled here, once."""
        super().__init__()
        # Asking for the working directory at each upload would scatter the files of a process that changes it.
        self._directory = directory.absolute()

    def start_upload(self, request: UploadRequest) -> UploadSession:
        new_id, created_at = self._ids.next()
        path = self._directory / f"{new_id}-{_safe_name(request.metadata.name)}"
        return _DirectoryUpload(request, new_id, created_at, path)


class DiscardingClient(_LocalClient):
    """Uploads into nothing: for running a producer without keeping what it produces. Needs no server."""

    def start_upload(self, request: UploadRequest) -> UploadSession:
        new_id, created_at = self._ids.next()
        return _DiscardingUpload(request, new_id, created_at, f"discard:///r/{new_id}")


def _safe_name(name: str) -> str:
    """Return a name that is one component of a path on any system: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.\-]", "_", name).encode()[:_MOST_NAME_BYTES].decode(errors="ignore")
