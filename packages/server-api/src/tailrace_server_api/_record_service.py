"""Record streams as a server offers them: what conversations talk to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

from tailrace_common_api import (
    Argument,
    BulkResult,
    QueuedRecord,
    QueueFigures,
    RecordBatch,
    RecordLimits,
    Reporting,
    Settlement,
)


class BulkIngest(ABC):
    """One bulk, on the server's side. Belongs to one event loop.

    The caller has checked that the bulk ends as it was sent, and ends every bulk with exactly one of :meth:`commit` and
    :meth:`rollback`; :meth:`rollback` is also what follows a :meth:`commit` that raised.
    """

    @property
    @abstractmethod
    def id(self) -> str:
        """Id of the bulk."""

    @property
    @abstractmethod
    def content_type(self) -> str:
        """Content type of the records."""

    @property
    @abstractmethod
    def limits(self) -> RecordLimits:
        """What is accepted."""

    @property
    @abstractmethod
    def result(self) -> BulkResult | None:
        """Result of the earlier bulk with the same key: then nothing can be submitted. Else ``None``."""

    @property
    @abstractmethod
    def granted(self) -> int:
        """Bytes of records, each counted with its overhead, that the client may have sent since the bulk began."""

    @abstractmethod
    def submit(self, batch: RecordBatch) -> None:
        """Take the next records; returns at once. They are validated here, and staged in groups behind it.

        Raises:
            BulkRefused: A record is not what the collection takes, and the first one was to be reported.
            QuotaExceeded: A limit on records or bytes is exceeded.
            TailraceError: Staging has failed.
        """

    @abstractmethod
    async def changed(self, granted: int) -> int:
        """Wait until :attr:`granted` differs from ``granted`` and return it.

        Raises:
            DeadlineExceeded: Nothing was submitted for too long.
            Fenced: A newer bulk has the same key.
            StorageFull, StorageFailure, GoingAway: Staging has failed, or the server shuts down.
        """

    @abstractmethod
    async def commit(self, *, records: int, digest: bytes) -> BulkResult:
        """Make all records visible at once, durably, and return the result.

        Cancelling it does not stop a transaction that has begun to commit; it is then finished in the background.

        Args:
            records: How many the client has sent.
            digest: Their digest as the client has it, 16 bytes.

        Raises:
            IntegrityError: Not what arrived.
            BulkRefused: There are no records, records are invalid, or break rules of the database; with indices.
            StagingLost, Fenced, StorageFull, StorageFailure, GoingAway: Nothing is visible, but for a
                ``StorageFailure`` that says otherwise.
        """

    @abstractmethod
    async def rollback(self) -> None:
        """Purge what was staged. Idempotent, also when cancelled: it then goes on in the background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResults:
    """Records that a query gives."""

    content_type: str
    """Content type of the records."""
    batches: AsyncGenerator[RecordBatch, None]
    """The records in batches of a size that suits one message; to be closed by who reads them."""


@dataclass(frozen=True, slots=True)
class Handed:
    """Records that are handed to a consumer."""

    records: Sequence[QueuedRecord]


@dataclass(frozen=True, slots=True)
class CreditState:
    """How the credit of a consumer stands; told when it changes or was asked for."""

    sequence: int
    """Number of the change of credit that is in force, as the consumer has counted it."""
    outstanding: int
    """Records that are with the consumer and not answered."""
    stalled: bool
    """Whether there is work that only its lack of credit keeps from it."""


class WorkSession(ABC):
    """One consumer of one queue, on the server's side. Belongs to one event loop.

    Ended with exactly one of :meth:`leave` and :meth:`release`.
    """

    @property
    @abstractmethod
    def consumer(self) -> str:
        """Id of the consumer."""

    @property
    @abstractmethod
    def content_type(self) -> str:
        """Content type of the records."""

    @property
    @abstractmethod
    def lease(self) -> float:
        """Time that the consumer has for a record, in seconds."""

    @abstractmethod
    def set_credit(self, sequence: int, *, records: int, bytes: int) -> None:
        """Set how many records, and bytes of them, the consumer takes unanswered; 0 records takes nothing more.

        What is unused of a higher credit before is taken back. In force when :meth:`next` has returned a
        :class:`CreditState` with this sequence; numbers rise.

        Raises:
            InvalidArgument: Negative, above the limits, or a sequence that does not rise.
        """

    @abstractmethod
    async def next(self) -> Handed | CreditState:
        """Wait for what there is to tell the consumer, and return it.

        What is returned is with the consumer from here on. Cancelling it loses nothing.

        Raises:
            GoingAway: The server shuts down.
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        """Take answers of the consumer, durably, and return for each whether it counts; see ``RecordQueue.settle``.

        Each answer to what is with the consumer, an extension apart, gives its credit back, whether or not it counts.

        Raises:
            StorageFailure: None of them is taken.
        """

    @abstractmethod
    async def leave(self) -> None:
        """End the session in order: what is with the consumer is given back at once."""

    @abstractmethod
    async def release(self) -> None:
        """End the session of a consumer that was lost: what is with it stays leased, so that it can still answer."""


class RecordService(ABC):
    """The record streams of one server, as one caller may use them. Belongs to one event loop and never blocks it.

    Every method raises ``RecordEndNotFound`` for an unknown name, ``PermissionDenied`` for what the caller may not use,
    ``InvalidArgument`` for values that cannot be accepted, and ``GoingAway`` when the server shuts down.
    """

    @abstractmethod
    async def begin_bulk(
        self,
        collection: str,
        *,
        content_type: str | None = None,
        key: str | None = None,
        reporting: Reporting = Reporting.FIRST,
        priority: int = 0,
    ) -> BulkIngest:
        """Begin a bulk into a collection or a queue.

        Args:
            collection: Name of either.
            content_type: Content type of the records; ``None`` for that of the collection, and no other is taken.
            key: Idempotency key, 1 to 255 printable characters; ``None`` for none.
            reporting: Which problems are told.
            priority: Priority of all records, for a queue; 0 for a collection.

        Raises:
            BulkConflict: The key was used for another collection or priority.
            Overloaded, StorageFull, StorageFailure: There is no room.
        """

    @abstractmethod
    async def query(self, source: str, arguments: Mapping[str, Argument]) -> QueryResults:
        """Begin a query.

        Args:
            source: Name of the source.
            arguments: Its arguments; text is read as the type that the parameter has. ``max_results`` is known to every
                source: most records to give.
        """

    @abstractmethod
    async def work(self, queue: str) -> WorkSession:
        """Begin to consume a queue, without any credit yet."""

    @abstractmethod
    async def queue_figures(self, queue: str) -> QueueFigures:
        """Return how much work there is."""
