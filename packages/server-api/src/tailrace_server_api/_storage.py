"""Where the bytes of resources live, and the one place where an append becomes real."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from tailrace_common_api import Checkpoint, Metadata, ResourceState, Visibility

Buffer = bytes | bytearray | memoryview
BLOCK_SIZE = 128 * 1024
"""Bytes of a full block: the fixed grid on which digests and newline counts are kept."""


class Durability(enum.Enum):
    """What an announced byte survives."""

    OS = "os"
    """A killed process."""
    FSYNC = "fsync"
    """Power loss: data is synced, then the journal, then the size is announced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What is fixed about a resource when it is created, and the token that opens its upload."""

    id: str
    """Resource id."""
    metadata: Metadata
    """What the uploader said of it."""
    visibility: Visibility
    """Who sees it before it is complete."""
    created_at: float
    """Time of creation, seconds since the Unix epoch."""
    token_hash: bytes
    """SHA-256 of the upload token; 32 bytes."""
    principal: str
    """Who created it; empty without authentication."""
    idempotency_key: str | None = None
    """Key under which the principal created it."""
    length: int | None = None
    """Declared length in bytes."""
    sha256: bytes | None = None
    """Declared SHA-256 of the content; 32 bytes."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The stored state of a resource at one version."""

    version: int
    """Sequence number of the journal entry that holds this state; strictly rising."""
    epoch: int
    """Epoch of the last writer."""
    state: ResourceState
    """State."""
    reason: str | None
    """Why it failed; ``None`` unless FAILED."""
    size: int
    """Announced size in bytes."""
    newlines: int
    """Bytes ``\\n`` below ``size``; 0 without line access."""
    head: bytes
    """Head at exactly ``size``."""
    open_line: bool
    """Whether bytes follow the last newline below ``size``; ``False`` without line access."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The announced end as a checkpoint."""
        return Checkpoint(self.size, self.newlines, self.head)

    @property
    def lines(self) -> int:
        """Lines that can be read: an unterminated last one counts only once the resource has ended."""
        return self.newlines + (self.open_line and self.state.terminal)


@dataclass(frozen=True, slots=True)
class Boundary:
    """A block boundary of a resource: what is known about all bytes below it."""

    offset: int
    """A multiple of the block size."""
    newlines: int
    """Bytes ``\\n`` below ``offset``."""
    spine: bytes
    """Chain over the full blocks below ``offset``; 16 bytes."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The change is stored; ``snapshot`` is the state from now on."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class FencedOff:
    """Nothing changed: a writer of the higher epoch ``epoch`` has been opened."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Nothing changed: the stored size is ``size``, not what the writer had built on."""

    size: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing changed: the resource is in a terminal state already."""

    snapshot: Snapshot


Outcome = Committed | FencedOff | Conflict | Ended


@dataclass(frozen=True, slots=True)
class Damage:
    """Something stored that is not what was written."""

    offset: int | None
    """Start of the damaged block in bytes; ``None`` where the journal or the description is damaged."""
    problem: str
    """What is wrong."""
    repaired: bool = False
    """Whether it was made good, or cut off."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a resource, ready to be sent; shared by all who read them."""

    data: Buffer
    """At least one byte; never changed."""
    hash: bytes
    """Hash of ``data`` as a chunk, 8 bytes.

    It is XXH3-64 of up to 128 KiB; of more, XXH3-64 of the XXH3-128 digests of its parts of 128 KiB, the last one
    shorter. A storage that checks digests of blocks has those of most parts at hand.
    """


class ResourceWriter(ABC):
    """The one open writer of a resource under one epoch.

    A writer belongs to one event loop and is used by one task at a time, except that :meth:`append` may be called
    while :meth:`flush` or :meth:`checkpoint` is awaited. What is appended is stored in order. After the first error,
    and after an outcome other than :class:`Committed`, the writer stores nothing any more.
    """

    @property
    @abstractmethod
    def epoch(self) -> int:
        """Epoch under which this writer writes."""

    @property
    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The last committed state that this writer knows."""

    @abstractmethod
    def append(self, data: Buffer, *, hash: bytes | None = None) -> None:
        """Hand over bytes to be stored behind all that was handed over before.

        Returns at once; the bytes are held by reference until stored and must not change. The caller bounds how
        much it hands over ahead of :meth:`flush` and :meth:`checkpoint`, whose callers also get the error if
        storing fails.

        Args:
            data: At least one byte.
            hash: What ``data`` must have as a chunk (see :class:`Piece`), 8 bytes; checked where the bytes are stored.
                ``None``: unchecked.
        """

    @property
    @abstractmethod
    def stored(self) -> int:
        """Size up to which bytes are stored, announced or not; may be ahead of ``snapshot.size``."""

    @abstractmethod
    async def flush(self) -> int:
        """Wait until what was appended before this call is stored; announce nothing.

        Returns:
            Size up to which bytes are stored.

        Raises:
            IntegrityError: A chunk did not have its hash; neither it nor anything behind it was stored.
            StorageFull: The disk is full. What is stored stays.
            StorageFailure: Any other failure of the storage.
        """

    @abstractmethod
    async def checkpoint(self) -> Outcome:
        """Store what was appended before this call and commit it as the announced size.

        Conditional on epoch, size and a state that is not terminal. A call with nothing new to announce commits
        nothing and returns the state as it is. Cancelling the caller does not undo a commit that has begun.

        Raises:
            IntegrityError: See :meth:`flush`. What was appended before the bad chunk is committed by the next call.
            StorageFull: The disk is full.
            StorageFailure: Any other failure of the storage.
        """

    @abstractmethod
    async def complete(self) -> Outcome:
        """Commit everything appended and the state COMPLETED; durable when this returns, in every mode.

        Raises:
            IntegrityError: See :meth:`flush`.
            StorageFull: The disk is full.
            StorageFailure: Any other failure of the storage.
        """

    @abstractmethod
    async def fail(self, reason: str) -> Outcome:
        """Commit what is stored and the state FAILED with ``reason``; durable when this returns.

        Bytes that were appended and are not stored yet are dropped. The reason is cut to 256 bytes of UTF-8.

        Raises:
            StorageFull: The disk is full.
            StorageFailure: Any other failure of the storage.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release the writer without changing the state; idempotent.

        Bytes that were appended are stored or dropped; nothing more is announced.
        """


class Storage(ABC):
    """Owns bytes, epoch, size and state of every resource.

    No method assumes that a resource's writer lives in this process. All methods belong to one event loop; none
    blocks it. Unless stated otherwise a method raises ``NotFound`` for an id that is not stored and
    ``StorageFailure`` when the storage fails, or ``Overloaded`` when only file descriptors are wanting. Cancelling a
    read abandons it; cancelling a change leaves the resource either unchanged or changed, never between.
    """

    @property
    @abstractmethod
    def durability(self) -> Durability:
        """What an announced byte survives."""

    @abstractmethod
    async def start(self) -> None:
        """Take hold of the storage; called once, before anything else.

        Raises:
            ConfigurationError: The storage is in use by another server, or of a format that is not understood.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release everything; open writers are closed. Idempotent."""

    @abstractmethod
    async def create(self, descriptor: Descriptor) -> Snapshot:
        """Store a new resource of size 0, state INITIATED and epoch 0; durable as :attr:`durability` says.

        Raises:
            StorageFull: The disk is full; nothing is left of the resource.
        """

    @abstractmethod
    async def describe(self, id: str) -> Descriptor:
        """Return what was said of a resource when it was created, with its current token hash."""

    @abstractmethod
    async def replace_token(self, id: str, token_hash: bytes) -> None:
        """Replace the hash of the upload token; durable when this returns."""

    @abstractmethod
    async def load(self, id: str) -> Snapshot:
        """Return the announced state.

        After a crash this is where recovery happens: the state returned is the last announced one or a later proven
        one, and what was stored beyond it is cut before a writer opens.
        """

    @abstractmethod
    async def open(self, id: str) -> ResourceWriter:
        """Open a writer under the next epoch, at the announced size; every older writer is fenced from then on.

        Raises:
            AlreadyTerminal: The resource has ended.
        """

    @abstractmethod
    def read_cached(self, id: str, start: int, end: int) -> Piece | None:
        """Return bytes ``[start, end)`` if that takes no waiting, else ``None``.

        Fewer bytes than asked for may be returned, at least one. The caller keeps within the announced size.

        Raises:
            DamagedBlock: The stored bytes do not match their digest.
        """

    @abstractmethod
    async def read(self, id: str, start: int, end: int) -> Piece:
        """Return bytes ``[start, end)``, ``start < end <= `` the announced size; exactly as many as asked for.

        The caller bounds the length; the result is not changed afterwards by anyone.

        Raises:
            DamagedBlock: The stored bytes do not match their digest.
        """

    @abstractmethod
    async def boundary(self, id: str, offset: int) -> Boundary:
        """Return the last block boundary at or below ``offset``, which is at most the announced size."""

    @abstractmethod
    async def boundary_of_newline(self, id: str, newlines: int, size: int) -> Boundary:
        """Return the last boundary at or below ``size`` with fewer than ``newlines`` newlines below it.

        The byte behind the ``newlines``-th newline then lies in the block at that boundary. ``newlines >= 1``.
        Costs O(log size).
        """

    @abstractmethod
    def verify(self, id: str, *, repair: bool = False) -> AsyncGenerator[Damage, None]:
        """Re-read a resource against its digests and yield what is damaged; nothing for one that is whole.

        Args:
            id: A resource that nobody writes.
            repair: Whether to make good what can be proven from the rest. An unfinished resource whose announced bytes
                are damaged is ended FAILED; bytes of one that has ended are not touched.
        """

    @abstractmethod
    async def delete(self, id: str) -> None:
        """Remove everything of a resource; open writers of it are fenced. Durable when this returns."""

    @abstractmethod
    def ids(self) -> AsyncGenerator[str, None]:
        """Yield the id of every stored resource, in no order; incomplete creations are removed on the way."""
