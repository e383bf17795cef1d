"""The ends of record streams: where bulks go, where results come from, and what hands out work.

They are what an embedding application implements. What is common to all of them (validation, limits, grouping, credit)
is in front of them, in the server's :class:`RecordService`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tailrace_common_api import (
    JSON,
    Argument,
    BulkResult,
    ConfigurationError,
    QueuedRecord,
    RecordBatch,
    Settlement,
    check_end_name,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOrigin:
    """What a bulk is, before its first record."""

    id: str
    """Id of the bulk, made by the server: what is staged bears it."""
    principal: str
    """Who sends it; empty without authentication. Idempotency keys belong to it."""
    key: str | None
    """Idempotency key; ``None`` for none."""
    priority: int
    """Priority of the records, where they are work; else 0."""


class StagedBatch(NamedTuple):
    """Validated records of a bulk, in order."""

    first: int
    """Number of the first of them in the bulk."""
    batch: RecordBatch
    """The records as they arrived."""
    values: Sequence[object]
    """What the validation made of each: for JSON the parsed object, for protobuf the message, else the bytes."""


class Validator(Protocol):
    """Checks records as they arrive. Called on the event loop with at most one message's records: must be quick."""

    def parse(self, batch: RecordBatch) -> Sequence[object]:
        """Return what each record says; see :attr:`StagedBatch.values`.

        Raises:
            BulkRefused: Records are not what is taken here; indices count within ``batch``, all of them are named.
        """


class RecordSink(ABC):
    """The place that takes the bulks of one collection: staged in batches, then visible at once, or never.

    Belongs to one event loop and never blocks it. Bulks run concurrently, and what is staged of each is apart; of one
    bulk one call runs at a time. Cancelling a call leaves the bulk to be rolled back, which works in any state.

    Every method raises ``StorageFailure`` when the database does not work, and ``StorageFull`` when it is full.
    """

    @abstractmethod
    async def start(self) -> None:
        """Prepare: connect, look at the target, make the place for staging, purge what a crash left.

        Raises:
            ConfigurationError: The target is not there, or is not what the settings say.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release everything; idempotent."""

    @abstractmethod
    async def begin(self, origin: BulkOrigin) -> BulkResult | None:
        """Begin a bulk.

        A bulk under the same key of the same principal that has not committed is fenced: it can be rolled back, and
        nothing else. When one is committing, this waits for what becomes of it.

        Returns:
            The result of the bulk with this key that has committed, with ``repeated`` set: nothing is begun then. Else
            ``None``.

        Raises:
            BulkConflict: The bulk with this key that has committed went elsewhere, or had another priority.
        """

    @abstractmethod
    async def stage(self, id: str, batch: StagedBatch) -> None:
        """Stage records of bulk ``id``; they are counted in the same transaction, durably.

        Raises:
            BulkRefused: The database cannot hold one of them; indices count within the bulk.
            Fenced: A newer bulk has the same key, or the bulk was swept.
        """

    @abstractmethod
    async def commit(self, id: str, *, records: int, size: int, digest: bytes) -> BulkResult:
        """Make everything that was staged visible in one transaction, and return the result.

        Args:
            id: The bulk.
            records: How many were staged, at least one; compared with what is there.
            size: Data and keys together, in bytes, for the result.
            digest: Their digest, for the result.

        Raises:
            BulkRefused: Duplicates, unknown references or other rules of the database, with the indices. Nothing of it
                is visible.
            StagingLost: Less is there than was staged.
            Fenced: As for :meth:`stage`.
            StorageFailure: Also when it is not known whether it committed; the same key then tells.
        """

    @abstractmethod
    async def rollback(self, id: str) -> None:
        """Purge what was staged of bulk ``id``, unless it has committed. Idempotent; harmless for unknown ids."""

    @abstractmethod
    async def sweep(self, older_than: float, *, results_older_than: float | None = None) -> int:
        """Purge bulks that have not committed, and nothing of which was staged for ``older_than`` seconds.

        Bulks of other processes that are alive are left alone. Results that are ``results_older_than`` seconds old are
        forgotten; ``None``: none are. Returns how many records were purged.
        """


class RecordSource(ABC):
    """Where the records of a query come from. Belongs to one event loop and never blocks it."""

    async def start(self) -> None:
        """Prepare; called once, before anything else."""
        return

    async def close(self) -> None:
        """Release everything; idempotent."""
        return

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, type]:
        """Arguments that are known, with the type of each: ``str``, ``int``, ``float`` or ``bool``."""

    @property
    @abstractmethod
    def required(self) -> frozenset[str]:
        """Of these, the ones that must be given."""

    @abstractmethod
    def query(self, arguments: Mapping[str, Argument]) -> AsyncGenerator[RecordBatch, None]:
        """Yield records as they are produced, in batches of any size; one at a time is fine.

        It is closed, or its task cancelled, as soon as the reader leaves: whatever runs for it in a database then ends.
        It is not asked for more while the reader is slow.

        Args:
            arguments: Known ones only, of their types; the required ones are there.

        Raises:
            TailraceError: What to tell the reader. Anything else is logged, and the reader gets ``QueryFailed``.
        """


class Claim(NamedTuple):
    """What one consumer may be given."""

    consumer: str
    """Id of the consumer."""
    records: int
    """Most records; at least 1."""
    bytes: int
    """Most bytes of all of them, as :attr:`QueuedRecord.size` counts; may be 0 or less."""
    idle: bool
    """Whether nothing is with the consumer: then one record is given whatever its size."""


class Depth(NamedTuple):
    """How many records a queue has."""

    ready: int
    delayed: int
    in_flight: int
    dead: int


class RecordQueue(ABC):
    """Hands out records under leases. Belongs to one event loop and never blocks it.

    Records are fed by bulks through :attr:`sink`. The order is that of priority (higher first), then of submission.
    A dead-letter queue is a queue of its own: settings name it ``NAME.dead``.

    Every method raises ``StorageFailure`` when the database does not work.
    """

    @property
    @abstractmethod
    def sink(self) -> RecordSink:
        """Where bulks of work go; started and closed with the queue."""

    @property
    @abstractmethod
    def lease(self) -> float:
        """Time that a consumer has for a record, in seconds."""

    @abstractmethod
    async def start(self) -> None:
        """Prepare; called once, before anything else.

        Raises:
            ConfigurationError: The database cannot be used.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release everything; idempotent."""

    @abstractmethod
    def subscribe(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` on the event loop when there may be something to claim; hints may be lost and repeated."""

    @abstractmethod
    async def claim(self, claims: Sequence[Claim]) -> Sequence[Sequence[QueuedRecord]]:
        """Lease records to consumers, durably, and return those of each, in the order of ``claims``.

        Leases that have ended are taken back first. A consumer whose next record does not fit into its bytes gets none
        behind it, so that large records are not overtaken for ever; another consumer may get it.
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        """Take answers, durably, and return for each whether it counts.

        It does while the record has not been handed out again since that attempt, even when its lease has ended. An
        answer that was taken before counts again if it is the same: its reply may have been lost; this is remembered
        for as long as a lease lasts.
        """

    @abstractmethod
    async def release(self, deliveries: Sequence[tuple[int, int]]) -> None:
        """Give back records (id, attempt) that a consumer leaves untouched: others can have them at once.

        Deliveries that are not current any more are ignored.
        """

    @abstractmethod
    async def next_due(self) -> float | None:
        """Return in how many seconds a delay or a lease ends, at least 0; ``None`` when none runs."""

    @abstractmethod
    async def depth(self) -> Depth:
        """Count the records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """A sink with what is taken there."""

    sink: RecordSink
    validator: Validator | None = None
    """What checks records; ``None``: JSON objects where the content type says JSON, else anything."""
    content_type: str = JSON
    """Content type of its records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source with what comes from there."""

    source: RecordSource
    content_type: str = JSON
    """Content type of its records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue with what is handed out there."""

    queue: RecordQueue
    validator: Validator | None = None
    """As for :class:`Collection`."""
    content_type: str = JSON
    """Content type of its records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordEnds:
    """All ends of record streams of a server, by name. Collections and queues share their names: both take bulks.

    Raises:
        ConfigurationError: A name is used for both.
        InvalidArgument: A name cannot be one.
    """

    collections: Mapping[str, Collection] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    queues: Mapping[str, Queue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.collections, *self.sources, *self.queues):
            check_end_name(name)
        both = sorted(self.collections.keys() & self.queues.keys())
        if both:
            raise ConfigurationError(field=f"queues.{both[0]}", problem="there is a collection of this name")
