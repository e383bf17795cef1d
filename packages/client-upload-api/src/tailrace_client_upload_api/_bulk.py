"""Sending many records at once: all of them become visible together, or none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Iterable
from types import TracebackType
from typing import Self

from tailrace_client_upload_api._record_encoding import RecordContent
from tailrace_common_api import BulkResult, RecordLimits, Reporting


class BulkUpload(ABC):
    """A bulk of records on its way.

    Entering the context manager opens it. Leaving it normally commits: every record is visible and durable then, and
    :attr:`result` says so. Leaving it with an exception, cancellation included, cancels the bulk: nothing becomes
    visible.

    Belongs to one event loop; one task uses it at a time. A lost connection ends a bulk with ``ConnectionLost`` unless
    its commit was on the way: whether that was reached is then asked of the server, for as long as the client's
    ``reconnect_timeout`` says. To send a bulk again after an error, use the same idempotency key: when the first one
    did commit, :attr:`result` is there when the bulk has opened, nothing is sent, and committing compares the records
    with those of the first bulk.
    """

    @property
    @abstractmethod
    def id(self) -> str:
        """Id of the bulk, once it is open."""

    @property
    @abstractmethod
    def limits(self) -> RecordLimits:
        """What the server accepts, once it is open."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Records that were handed to :meth:`send`."""

    @property
    @abstractmethod
    def result(self) -> BulkResult | None:
        """The result; ``None`` until there is one."""

    @abstractmethod
    async def open(self) -> None:
        """Open the bulk; called by ``__aenter__``, and harmless when it is open.

        Raises:
            RecordEndNotFound: There is no such collection or queue.
            InvalidArgument, BulkConflict, PermissionDenied, Overloaded, StorageFailure: The server refuses it.
            ConnectionLost, DeadlineExceeded: The server cannot be reached, or does not answer.
        """

    @abstractmethod
    async def send(self, record: RecordContent, *, key: str | None = None) -> None:
        """Send a record; returns when it is handed over, and waits only while the granted window is used up.

        Records are gathered into messages while the previous one is on its way.

        Args:
            record: The record.
            key: Its key; ``None`` for the one of a :class:`Record`, or none.

        Raises:
            InvalidArgument: It cannot be a record: too large, not serialisable, a key that is too long. The bulk is as
                it was before.
            BulkRefused: The server refuses a record, perhaps an earlier one; the bulk is over.
            TailraceError: The bulk is over: the server's error, or ``ConnectionLost``.
        """

    @abstractmethod
    async def commit(self) -> BulkResult:
        """Commit the bulk and return the result; repeating it returns the same one.

        Cancelled, it leaves open whether the bulk is committed; the idempotency key tells.

        Raises:
            BulkRefused: There are no records, or some cannot be accepted: with the indices.
            BulkConflict: An earlier bulk with the same key had other records.
            TailraceError: The bulk is over and nothing is visible, unless the error is ``ConnectionLost`` or
                ``DeadlineExceeded``: then it may be, and the idempotency key tells.
        """

    @abstractmethod
    async def cancel(self) -> None:
        """Give the bulk up: nothing becomes visible. Idempotent; harmless behind :meth:`commit`."""

    async def send_all(self, records: Iterable[RecordContent] | AsyncIterable[RecordContent]) -> int:
        """Send everything that ``records`` yields, as it comes, and return how many that were.

        Raises:
            TailraceError: As for :meth:`send`.
        """
        sent = 0
        if isinstance(records, AsyncIterable):
            async for record in records:
                await self.send(record)
                sent += 1
        else:
            for record in records:
                await self.send(record)
                sent += 1
        return sent

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if exc is None:
                await self.commit()
        finally:
            await self.cancel()


class BulkClient(ABC):
    """Sends bulks; any number of them run concurrently over one client."""

    @abstractmethod
    def bulk(
        self,
        collection: str,
        *,
        idempotency_key: str | None = None,
        content_type: str | None = None,
        reporting: Reporting = Reporting.FIRST,
        priority: int = 0,
    ) -> BulkUpload:
        """Prepare a bulk; it opens when it is entered.

        Args:
            collection: Name of a collection, or of a queue: then the records are work, all of which appears at once.
            idempotency_key: Key under which a repeated bulk is answered with the first one's result; 1 to 255
                characters. ``None``: one is made up, which serves to find out what became of a commit.
            content_type: Content type of the records; ``None`` for that of the collection.
            reporting: Whether the first bad record ends the bulk, or all of them are reported at the commit.
            priority: Priority of the records, for a queue; higher ones come first.

        Raises:
            InvalidArgument: A value cannot be accepted.
        """
