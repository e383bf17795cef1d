r"""What is said about records; see :mod:`tailrace_impl_common.messages`, of which this is a part.

=================  =====================================  ==========================================
request            further messages of the client         messages of the server
=================  =====================================  ==========================================
``OpenBulk``       ``Records``\*, ``CommitBulk``          ``BulkOpened``, ``Window``\*, ``BulkCommitted``
``Query``          ``Window``\*                           ``QueryStarted``, ``Records``\*, ``QueryEnd``
``Work``           (``Credit`` | ``Settle``)\*, ``Leave``  ``WorkOpened``, (``Deliveries`` | ``Settled`` |
                                                          ``CreditSet``)\*, ``Left``
``GetQueue``       –                                      ``QueueFigures``
=================  =====================================  ==========================================

Windows count records as :attr:`tailrace_common_api.RecordBatch.size` does, from the first record of the stream on. That
of a query may be overdrawn by one message, so that a record larger than the window still comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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

MESSAGE_BYTES = 256 * 1024
"""Bytes of records that go into one message, each counted with its overhead; a larger record has one of its own."""
MESSAGE_RECORDS = 8192
"""Most records in one message; a receiver refuses more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBulk:
    """Begins a bulk."""

    collection: str
    """Collection, or queue."""
    content_type: str | None = None
    """``None`` for that of the collection."""
    idempotency_key: str | None = None
    reporting: Reporting = Reporting.FIRST
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOpened:
    """Answers ``OpenBulk``.

    With a result, an earlier bulk with the same key has committed: nothing is to be sent, the conversation is over.
    """

    id: str
    content_type: str
    limits: RecordLimits
    until: int
    """Bytes of records that may be sent."""
    result: BulkResult | None = None


Records = RecordBatch
"""Records of a bulk or of a query, in order."""


@dataclass(frozen=True, slots=True)
class CommitBulk:
    """Ends the input of a bulk: it had so many records with this digest."""

    records: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class BulkCommitted:
    """Ends a bulk: everything is visible, and durable."""

    result: BulkResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Asks for the records of a source."""

    source: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    window: int = 0
    """Bytes of records granted from the first on; 0: no window of the application."""


@dataclass(frozen=True, slots=True)
class QueryStarted:
    """Begins the answer to ``Query``."""

    content_type: str


@dataclass(frozen=True, slots=True)
class QueryEnd:
    """Ends the answer to ``Query``: so many records with this digest were sent, and there are no more."""

    records: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Begins to consume a queue. The credit has number 0 among the changes of credit."""

    queue: str
    records: int
    """Most records that the consumer takes unanswered."""
    bytes: int
    """Most bytes of them; a larger record comes when nothing else is with the consumer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOpened:
    """Answers ``Work``."""

    consumer: str
    """Id of the consumer, for logs."""
    content_type: str
    lease: float
    """Time that the consumer has for a record, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Changes the credit to these absolute values; what is unused beyond them is taken back."""

    sequence: int
    """Number of this change, rising by one from 1 on."""
    records: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CreditSet:
    """Says how the credit stands: behind a ``Credit``, and whenever ``stalled`` changes."""

    sequence: int
    """Number of the last change that is in force: what comes behind this message keeps to it."""
    outstanding: int
    """Records that are with the consumer and not answered."""
    stalled: bool
    """Whether there is work that only the lack of credit keeps from the consumer."""


@dataclass(frozen=True, slots=True)
class Deliveries:
    """Hands out records."""

    records: tuple[QueuedRecord, ...]


@dataclass(frozen=True, slots=True)
class Settle:
    """Answers deliveries."""

    settlements: tuple[Settlement, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """Says of each answer in the oldest ``Settle`` that is not answered whether it counts, in its order.

    An answer does not count when the record was handed to somebody else meanwhile. With ``failed`` set nothing of it
    was taken, for a reason of the server's, and it can be said again.
    """

    counted: tuple[bool, ...]
    failed: str = ""
    """Why nothing was taken; empty when it was."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The consumer leaves: what it has not answered is given back at once."""


@dataclass(frozen=True, slots=True)
class Left:
    """Ends the answer to ``Work`` behind ``Leave``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GetQueue:
    """Asks how much work there is in a queue."""

    queue: str


RecordStreamRequest = OpenBulk | Query | Work
RecordRequest = RecordStreamRequest | GetQueue
RecordClientMessage = RecordRequest | RecordBatch | CommitBulk | Credit | Settle | Leave
RecordServerMessage = (
    BulkOpened
    | BulkCommitted
    | QueryStarted
    | RecordBatch
    | QueryEnd
    | WorkOpened
    | CreditSet
    | Deliveries
    | Settled
    | Left
    | QueueFigures
)
RECORD_STREAM_REQUESTS = (OpenBulk, Query, Work)

__all__ = [
    "MESSAGE_BYTES",
    "MESSAGE_RECORDS",
    "RECORD_STREAM_REQUESTS",
    "BulkCommitted",
    "BulkOpened",
    "CommitBulk",
    "Credit",
    "CreditSet",
    "Deliveries",
    "GetQueue",
    "Leave",
    "Left",
    "OpenBulk",
    "Query",
    "QueryEnd",
    "QueryStarted",
    "QueueFigures",
    "QueuedRecord",
    "RecordBatch",
    "RecordClientMessage",
    "RecordRequest",
    "RecordServerMessage",
    "RecordStreamRequest",
    "Records",
    "Settle",
    "Settled",
    "Settlement",
    "Work",
    "WorkOpened",
]
