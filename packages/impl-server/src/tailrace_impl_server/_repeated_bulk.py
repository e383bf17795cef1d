"""A bulk that a client sends again, and that has committed before."""

from __future__ import annotations

from tailrace_common_api import BulkConflict, BulkResult, ProtocolError, RecordBatch, RecordLimits
from tailrace_server_api import BulkIngest


class RepeatedBulk(BulkIngest):
    """A bulk whose key has committed before: it has its result and takes nothing."""

    def __init__(self, id: str, content_type: str, limits: RecordLimits, result: BulkResult) -> None:
        self._id = id
        self._content_type = content_type
        self._limits = limits
        self._result = result

    @property
    def id(self) -> str:
        return self._id

    @property
    def content_type(self) -> str:
        return self._content_type

    @property
    def limits(self) -> RecordLimits:
        return self._limits

    @property
    def result(self) -> BulkResult:
        return self._result

    @property
    def granted(self) -> int:
        return 0

    def submit(self, batch: RecordBatch) -> None:
        raise ProtocolError("the bulk has committed before")

    async def changed(self, granted: int) -> int:
        raise ProtocolError("the bulk has committed before")

    async def commit(self, *, records: int, digest: bytes) -> BulkResult:
        if records != self._result.records or digest != self._result.digest:
            raise BulkConflict(id=self._result.id)
        return self._result

    async def rollback(self) -> None:
        return
