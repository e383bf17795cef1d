"""An upload that is another one's outside."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from tailrace_client_upload_api import Buffer, UploadSession
from tailrace_common_api import Checkpoint, Limits, Status, TailraceError


class DelegatingUpload(UploadSession):
    """Passes everything on to the session inside."""

    def __init__(self, session: UploadSession) -> None:
        """Stand in front of ``session``."""
        self._session = session

    @property
    def reference(self) -> str:
        return self._session.reference

    @property
    def id(self) -> str:
        return self._session.id

    @property
    def token(self) -> str:
        return self._session.token

    @property
    def epoch(self) -> int:
        return self._session.epoch

    @property
    def limits(self) -> Limits:
        return self._session.limits

    @property
    def offset(self) -> int:
        return self._session.offset

    @property
    def announced(self) -> Checkpoint:
        return self._session.announced

    @property
    def status(self) -> Status:
        return self._session.status

    @property
    def interruption(self) -> TailraceError | None:
        return self._session.interruption

    def interruptions(self) -> AsyncGenerator[TailraceError | None, None]:
        return self._session.interruptions()

    async def open(self) -> None:
        await self._session.open()

    async def write(self, data: Buffer) -> None:
        await self._session.write(data)

    async def flush(self) -> Checkpoint:
        return await self._session.flush()

    async def finish(self) -> Status:
        return await self._session.finish()

    async def abort(self, reason: str = "aborted by the client") -> Status | None:
        return await self._session.abort(reason)

    def checkpoints(self) -> AsyncGenerator[Checkpoint, None]:
        return self._session.checkpoints()

    async def detach(self) -> None:
        await self._session.detach()
