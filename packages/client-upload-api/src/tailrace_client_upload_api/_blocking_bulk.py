"""Bulks for blocking code: a façade over the asynchronous ones, part of :mod:`tailrace_client_upload_api.sync`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from tailrace_client_upload_api import _bulk as asynchronous
from tailrace_client_upload_api._record_encoding import RecordContent, encode_record, key_size
from tailrace_common_api import (
    KIBIBYTE,
    RECORD_OVERHEAD,
    BulkResult,
    InvalidArgument,
    QuotaExceeded,
    Record,
    RecordLimits,
    Reporting,
    UploadAborted,
)
from tailrace_common_api.blocking import Portal, call, call_plain

# Bytes of records that are worth a thread switch: about a message of them.
_GATHERED_BYTES = 256 * KIBIBYTE
# Seconds after which a record does not wait for others any more.
_GATHERED_SECONDS = 0.05


class BulkUpload:
    """A bulk on its way, for blocking code; see :class:`tailrace_client_upload_api.BulkUpload`.

    Entering the context manager opens it, leaving it normally commits, and leaving it with an exception
    (``KeyboardInterrupt`` too) cancels it: nothing becomes visible. May be used from any thread, by one at a time.
    """

    def __init__(self, portal: Portal, bulk: asynchronous.BulkUpload) -> None:
        self._portal = portal
        self._bulk = bulk
        self._gathered: list[Record] = []
        self._gathered_size = 0
        self._handed_over_at = 0.0
        self._count = 0
        self._size = 0
        self._limits: RecordLimits | None = None
        self._failure: Exception | None = None

    @property
    def id(self) -> str:
        """Id of the bulk, once it is open."""
        return self._bulk.id

    @property
    def limits(self) -> RecordLimits:
        """What the server accepts, once it is open."""
        return self._bulk.limits

    @property
    def count(self) -> int:
        """Records that were handed to :meth:`send`."""
        return self._count

    @property
    def result(self) -> BulkResult | None:
        """The result; ``None`` until there is one."""
        return self._bulk.result

    def open(self) -> None:
        """Open the bulk; called by ``__enter__``, and harmless when it is open."""
        call(self._portal, self._bulk.open)
        self._limits = self._bulk.limits

    def send(self, record: RecordContent, *, key: str | None = None) -> None:
        """Send a record.

        Records are gathered here, and handed over some hundred at a time, so an error of the server may be raised by a
        later call than the record that it concerns. One that comes after a pause is handed over at once.

        Args:
            record: The record; may be changed once this returns.
            key: Its key; ``None`` for the one of a :class:`Record`, or none.

        Raises:
            InvalidArgument, QuotaExceeded: It cannot be a record, or there are too many. The bulk is as it was before.
            BulkRefused: The server refuses a record, perhaps an earlier one; the bulk is over.
            TailraceError: The bulk is over: the server's error, or ``ConnectionLost``.
        """
        self._check()
        item = encode_record(record, key)
        size = len(item.data) + (key_size(item.key) if item.key is not None else 0)
        self._check_size(size)
        self._gathered.append(item)
        self._gathered_size += size + RECORD_OVERHEAD
        self._count += 1
        self._size += size
        if self._gathered_size >= _GATHERED_BYTES or time.monotonic() - self._handed_over_at >= _GATHERED_SECONDS:
            self._hand_over()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._limits is None:
            raise RuntimeError("the bulk is not open; enter it with `with`")

    def _check_size(self, size: int) -> None:
        assert self._limits is not None
        limits = self._limits
        largest = min(limits.record_bytes, limits.window - RECORD_OVERHEAD)
        if size > largest:
            raise InvalidArgument(field="record", problem=f"{size} bytes; at most {largest} are accepted")
        if self._count >= limits.bulk_records:
            raise QuotaExceeded(limit="records per bulk", maximum=limits.bulk_records, actual=self._count + 1)
        if self._size + size > limits.bulk_bytes:
            raise QuotaExceeded(limit="bytes per bulk", maximum=limits.bulk_bytes, actual=self._size + size)

    def _hand_over(self) -> None:
        records, self._gathered, self._gathered_size = self._gathered, [], 0
        try:
            call(self._portal, self._send, records)
        except BaseException as error:
            # Some of them may have been sent and others not: there is no going on behind that.
            self._failure = error if isinstance(error, Exception) else UploadAborted(reason="sending was interrupted")
            raise
        self._handed_over_at = time.monotonic()

    async def _send(self, records: list[Record]) -> None:
        send = self._bulk.send
        for data, key in records:
            await send(data, key=key)

    def send_all(self, records: Iterable[RecordContent]) -> int:
        """Send everything that ``records`` yields, as it comes, and return how many that were."""
        sent = 0
        for record in records:
            self.send(record)
            sent += 1
        return sent

    def commit(self) -> BulkResult:
        """Commit the bulk and return the result; repeating it returns the same one."""
        self._check()
        if self._gathered:
            self._hand_over()
        return call(self._portal, self._bulk.commit)

    def cancel(self) -> None:
        """Give the bulk up: nothing becomes visible. Idempotent; harmless behind :meth:`commit`."""
        self._gathered, self._gathered_size = [], 0
        call(self._portal, self._bulk.cancel)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if exc is None:
                self.commit()
        finally:
            self.cancel()


class BulkClient:
    """Sends bulks, for blocking code; see :class:`tailrace_client_upload_api.BulkClient`."""

    def __init__(self, portal: Portal, client: asynchronous.BulkClient) -> None:
        self._bulk_portal = portal
        self._bulk_client = client

    def bulk(
        self,
        collection: str,
        *,
        idempotency_key: str | None = None,
        content_type: str | None = None,
        reporting: Reporting = Reporting.FIRST,
        priority: int = 0,
    ) -> BulkUpload:
        """Prepare a bulk; it opens when it is entered. Arguments as for the asynchronous one.

        Raises:
            InvalidArgument: A value cannot be accepted.
        """
        bulk = call_plain(
            self._bulk_portal,
            self._bulk_client.bulk,
            collection,
            idempotency_key=idempotency_key,
            content_type=content_type,
            reporting=reporting,
            priority=priority,
        )
        return BulkUpload(self._bulk_portal, bulk)
