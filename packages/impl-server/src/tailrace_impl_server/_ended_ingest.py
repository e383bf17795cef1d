"""The session of an upload that has ended."""

from __future__ import annotations

from tailrace_common_api import AlreadyTerminal, Status
from tailrace_impl_server._live_resource import LiveResource
from tailrace_server_api import Buffer, Progress, Snapshot, UploadIngest


class EndedIngest(UploadIngest):
    """The session of an upload that has ended: there is a status, and nothing to do."""

    def __init__(self, live: LiveResource) -> None:
        self._id = live.id
        self._snapshot = live.snapshot
        self._status = live.status()
        self._progress = Progress(self._snapshot.size, self._snapshot.checkpoint)

    @property
    def id(self) -> str:
        return self._id

    @property
    def token(self) -> str:
        return ""

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    @property
    def progress(self) -> Progress:
        return self._progress

    def status(self) -> Status:
        return self._status

    def submit(self, data: Buffer, *, hash: bytes) -> None:
        raise self._ended()

    async def changed(self, known: Progress) -> Progress:
        raise self._ended()

    async def finish(self, *, size: int, head: bytes) -> Status:
        raise self._ended()

    async def abort(self, reason: str) -> Status | None:
        raise self._ended()

    async def release(self) -> None:
        return

    def _ended(self) -> AlreadyTerminal:
        return AlreadyTerminal(id=self._id, state=self._snapshot.state.value)
