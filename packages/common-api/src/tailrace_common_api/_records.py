"""Records: values that clients, servers and transports share.

Sizes are in bytes, times in seconds, timestamps in seconds since the Unix epoch; records are counted from 0.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tailrace_common_api._errors import BulkRefused, InvalidArgument

JSON = "application/json"
"""Content type of records unless something else is said: each is one JSON object."""
RECORD_OVERHEAD = 8
"""Bytes that every record counts for in windows, credits and messages, beside those of its data and its key."""
MAX_RECORD_SIZE = 3 * 1024 * 1024
"""Largest record that any server may be set to accept, data and key together, in bytes: it fits into one message."""
MAX_KEY_SIZE = 255
"""Longest key of a record, in bytes of UTF-8."""
MIN_PRIORITY, MAX_PRIORITY = -1000, 1000
"""Lowest and highest priority of work."""
DIGEST_SIZE = 16
"""Length of the digest of a stream of records, in bytes."""

Argument = str | int | float | bool | None
"""Value of an argument of a query."""


_END_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")


class Record(NamedTuple):
    """One record, as it is read: a named tuple because one is made for every record of a stream."""

    data: bytes
    """Content; of what kind says the stream."""
    key: str | None = None
    """Key; ``None`` for none."""

    def json(self) -> Any:
        """Return the content, parsed.

        Raises:
            ValueError: It is not JSON.
        """
        return json.loads(self.data)


class RecordBatch(NamedTuple):
    """Some records of a stream, in order: what travels together and is staged together."""

    data: Sequence[bytes]
    """Content of each; at least one."""
    keys: Sequence[str | None] = ()
    """Key of each; empty when none has one."""

    @property
    def size(self) -> int:
        """What the records count for in windows: data, keys, and an overhead for each, in bytes."""
        total = sum(map(len, self.data)) + RECORD_OVERHEAD * len(self.data)
        return total + sum(len(key.encode()) for key in self.keys if key) if self.keys else total

    def records(self) -> list[Record]:
        """Return the records one by one."""
        if self.keys:
            return list(map(Record, self.data, self.keys))
        return list(map(Record, self.data))


class Reporting(enum.Enum):
    """What a bulk tells of records that cannot be accepted."""

    FIRST = "first"
    """The first one, at once: the bulk ends with it."""
    ALL = "all"
    """All of them, when every record has been looked at; the list is bounded."""


class ProblemKind(enum.Enum):
    """What is wrong with a record."""

    INVALID = "invalid"
    """It is not what the collection takes."""
    DUPLICATE = "duplicate"
    """It is there already, or twice in the bulk."""
    REFERENCE = "reference"
    """It refers to something that is not there."""
    CONSTRAINT = "constraint"
    """Another rule of the database is broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordProblem:
    """What is wrong with one record of a bulk."""

    index: int
    """Number of the record in the bulk, from 0."""
    kind: ProblemKind
    """What kind of problem it is."""
    field: str | None
    """Field that is concerned, as a path with dots; ``None`` for the whole record."""
    problem: str
    """What is wrong, in words."""


def refused_records(problems: Sequence[RecordProblem], total: int) -> BulkRefused:
    """Return the error of a bulk with these problems, of ``total`` in all; none and 0: it has no records."""
    listed = [[item.index, item.kind.value, item.field, item.problem] for item in problems]
    return BulkRefused(problems=json.dumps(listed, ensure_ascii=True, separators=(",", ":")), total=total)


def record_problems(error: BulkRefused) -> tuple[RecordProblem, ...]:
    """Return what is wrong with the records of a refused bulk, by index."""
    return tuple(
        RecordProblem(index=index, kind=ProblemKind(kind), field=field, problem=problem)
        for index, kind, field, problem in json.loads(error.problems)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordLimits:
    """What a server accepts of record streams; announced when one is opened."""

    record_bytes: int
    """Largest record, data and key together, in bytes."""
    bulk_records: int
    """Most records of one bulk."""
    bulk_bytes: int
    """Most bytes of one bulk, data and keys together."""
    bulk_idle: float
    """Longest time in which a bulk may send nothing, in seconds."""
    window: int
    """Bytes of records that may be on their way unacknowledged, each counted with its overhead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkResult:
    """What became of a bulk: all of its records are there."""

    id: str
    """Id of the bulk, made by the server."""
    collection: str
    """Where the records went."""
    records: int
    """How many."""
    size: int
    """Data and keys together, in bytes."""
    digest: bytes
    """Digest of the records in their order, 16 bytes."""
    committed_at: float
    """When they became visible, on the server's clock."""
    repeated: bool = False
    """Whether this is the answer to an earlier bulk with the same idempotency key: nothing was sent this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFigures:
    """How much work there is in a queue."""

    queue: str
    """Name of the queue."""
    ready: int
    """Records that wait for a consumer."""
    delayed: int
    """Records that wait for their time."""
    in_flight: int
    """Records that were handed out and not answered."""
    dead: int
    """Records in the dead-letter queue."""
    consumers: int
    """Consumers that are connected to this server."""
    stalled: int
    """Of these, how many have no credit left while there is work for them."""


class Verdict(enum.Enum):
    """What a consumer says of a delivery."""

    ACKNOWLEDGE = "acknowledge"
    """It is done, and is never delivered again."""
    REQUEUE = "requeue"
    """It is to be delivered again, after a delay."""
    DEAD_LETTER = "dead_letter"
    """It cannot be done: it goes to the dead-letter queue."""
    EXTEND = "extend"
    """It takes longer: its lease begins again."""


class Settlement(NamedTuple):
    """An answer to a delivery."""

    id: int
    """Number of the record in its queue."""
    attempt: int
    """Which of its deliveries is answered."""
    verdict: Verdict
    """What becomes of it."""
    seconds: float = 0.0
    """REQUEUE: least time until the next delivery. EXTEND: time of the lease from here on; 0 for the queue's."""
    reason: str = ""
    """REQUEUE and DEAD_LETTER: why, for whoever looks; at most 1,024 characters."""


class QueuedRecord(NamedTuple):
    """A record of a queue, as it is handed out."""

    id: int
    """Number of the record in its queue."""
    attempt: int
    """How often it has been handed out, this time included."""
    priority: int
    """Higher ones come first."""
    data: bytes
    """Content."""
    key: str | None = None
    """Key; ``None`` for none."""

    @property
    def size(self) -> int:
        """What the record counts for in a credit, in bytes."""
        return RECORD_OVERHEAD + len(self.data) + (len(self.key.encode()) if self.key else 0)


def check_end_name(name: str) -> str:
    """Return ``name`` if it can be the name of a collection, a source or a queue.

    That is 1 to 128 letters, digits, ``_``, ``-`` and ``.``, of ASCII, beginning with a letter or a digit.

    Raises:
        InvalidArgument: It cannot.
    """
    if not _END_NAME.match(name):
        raise InvalidArgument(field="name", problem=f"{name[:80]!a} is no name of a collection, source or queue")
    return name


def check_priority(priority: int) -> int:
    """Return ``priority`` if it is within the bounds.

    Raises:
        InvalidArgument: It is not.
    """
    if type(priority) is not int or not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        problem = f"{priority!a} is not within {MIN_PRIORITY} and {MAX_PRIORITY}"
        raise InvalidArgument(field="priority", problem=problem)
    return priority


def check_arguments(arguments: Mapping[str, object]) -> Mapping[str, Argument]:
    """Return the arguments of a query if each has a name and is a scalar: text, a number, a boolean or ``None``.

    Raises:
        InvalidArgument: One is not, or there are more than 64.
    """
    if len(arguments) > 64:
        raise InvalidArgument(field="arguments", problem=f"{len(arguments)} arguments; at most 64 are allowed")
    checked: dict[str, Argument] = {}
    for name, value in arguments.items():
        if not name.isidentifier():
            raise InvalidArgument(field="arguments", problem=f"{name[:80]!a} is no name of an argument")
        if value is not None and not isinstance(value, str | int | float):
            raise InvalidArgument(field=name, problem=f"{type(value).__name__} is not text, a number or a boolean")
        checked[name] = value
    return checked
