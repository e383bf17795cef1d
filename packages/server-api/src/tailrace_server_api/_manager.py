"""What transports talk to: resources as a server offers them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass

from tailrace_common_api import (
    Checkpoint,
    Context,
    ContextEvent,
    Limits,
    ListFilter,
    Metadata,
    Page,
    Position,
    Status,
    Visibility,
)
from tailrace_server_api._access import Credentials
from tailrace_server_api._record_service import RecordService
from tailrace_server_api._storage import Buffer, Piece, Snapshot
from tailrace_server_api._telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an upload has come; a newer value replaces an older one."""

    until: int
    """Offset up to which the client may send."""
    checkpoint: Checkpoint
    """The announced end."""


class UploadIngest(ABC):
    """One session of one upload, on the server's side. Belongs to one event loop.

    The caller (a transport's upload conversation) has checked offset and chain of every chunk before it submits it,
    and ends every session with exactly one of :meth:`finish`, :meth:`abort` and :meth:`release`.
    """

    @property
    @abstractmethod
    def id(self) -> str:
        """Resource id."""

    @property
    @abstractmethod
    def token(self) -> str:
        """Upload token for the next session; printable ASCII."""

    @property
    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The announced state, current at every call. The session starts at its size."""

    @property
    @abstractmethod
    def progress(self) -> Progress:
        """Granted window and announced end, current at every call."""

    @abstractmethod
    def status(self) -> Status:
        """Return the current status."""

    @abstractmethod
    def submit(self, data: Buffer, *, hash: bytes) -> None:
        """Take the next bytes; returns at once.

        Args:
            data: At least one byte, within the granted window; held by reference and not to be changed.
            hash: What ``data`` must have as a chunk (see :class:`Piece`); checked where it is stored.

        Raises:
            LengthMismatch: The declared length is exceeded; the resource is FAILED.
            QuotaExceeded: The largest size of a resource is exceeded; nothing of ``data`` is stored.
        """

    @abstractmethod
    async def changed(self, known: Progress) -> Progress:
        """Wait until the progress differs from ``known`` and return it; latest wins.

        Raises:
            IntegrityError: A chunk did not have its hash.
            Fenced: A newer session took over.
            Deleted: The resource was deleted.
            AlreadyTerminal: Somebody else ended the resource.
            StorageFull, StorageFailure: The storage cannot take more.
            GoingAway: The server shuts down.
        """

    @abstractmethod
    async def finish(self, *, size: int, head: bytes) -> Status:
        """Complete the upload if ``size`` and ``head`` are those of the stored bytes; durable when this returns.

        Raises:
            IntegrityError: Size or head differ. With a different size the upload can be resumed; with a different
                head the resource is FAILED.
            LengthMismatch, DigestMismatch: What was declared is not met; the resource is FAILED.
            Fenced, Deleted, AlreadyTerminal, StorageFull, StorageFailure, GoingAway: As for :meth:`changed`.
        """

    @abstractmethod
    async def abort(self, reason: str) -> Status | None:
        """End the upload as FAILED with ``reason``; what was announced stays readable.

        Returns:
            The final status; ``None`` for an atomic upload, of which nothing is left.

        Raises:
            Fenced, Deleted, AlreadyTerminal, StorageFull, StorageFailure: As for :meth:`changed`.
        """

    @abstractmethod
    async def release(self) -> None:
        """End the session without ending the upload: its grace period begins, unless a newer session took over.

        Idempotent, and harmless after :meth:`finish` or :meth:`abort`.
        """


class ResourceReader(ABC):
    """An open resource, for any number of concurrent reads. Belongs to one event loop.

    Everything that waits raises ``Deleted`` as soon as the resource is deleted. Cancelling any call is safe.
    """

    @property
    @abstractmethod
    def id(self) -> str:
        """Resource id."""

    @property
    @abstractmethod
    def line_access(self) -> bool:
        """Whether the resource can be read by lines."""

    @property
    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The announced state, current at every call; reads keep within its size."""

    @abstractmethod
    def status(self) -> Status:
        """Return the current status."""

    @abstractmethod
    async def changed(self, version: int, absorb: Callable[[Snapshot], bool] | None = None) -> Snapshot:
        """Wait until the announced version is above ``version`` and return the newest state.

        Intermediate states may be skipped, terminal ones never are.

        Args:
            version: Version of the state that the caller knows.
            absorb: Is called with each newer state while this waits, and says whether that was all there is to do
                about it: the wait then goes on, without a task being woken. It must not wait; what it raises is raised
                here. It is never called when this does not wait, nor with a deletion or a shutdown.
        """

    @abstractmethod
    def try_read(self, start: int, end: int) -> Piece | None:
        """Return bytes from ``start``, at most up to ``end``, if that takes no waiting, else ``None``.

        ``start < end <= snapshot.size``. Recent bytes come from a shared tail, without reading or hashing them again.
        """

    @abstractmethod
    async def read(self, start: int, end: int) -> Piece:
        """Return bytes from ``start``, at most up to ``end``, at least one; ``start < end <= snapshot.size``.

        Raises:
            DamagedBlock: The stored bytes do not match their digest.
            StorageFailure: The storage failed.
        """

    @abstractmethod
    async def line_offset(self, line: int, snapshot: Snapshot) -> int:
        """Return the offset at which ``line`` starts in ``snapshot``.

        ``line == snapshot.lines`` gives the end of the last readable line.

        Raises:
            LineAccessDisabled: The resource has no line access.
            LineRangeNotSatisfiable: ``line`` is negative or above ``snapshot.lines``.
        """

    @abstractmethod
    async def line_at(self, offset: int, snapshot: Snapshot) -> Position:
        """Return the line that holds byte ``offset`` in ``snapshot``.

        ``offset == size`` gives the line that the next byte would be part of.

        Raises:
            LineAccessDisabled: The resource has no line access.
            RangeNotSatisfiable: ``offset`` is not within ``[0, snapshot.size]``.
        """

    @abstractmethod
    async def head(self, size: int) -> bytes:
        """Return the head at ``size``.

        Raises:
            RangeNotSatisfiable: ``size`` is not within ``[0, snapshot.size]``.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the resource; idempotent."""


class ResourceService(ABC):
    """The resources of one server, as one caller may use them. All methods belong to one event loop and never block it.

    Every method raises ``PermissionDenied`` for what the caller may not do at all, and ``GoingAway`` when the server
    shuts down. Methods that take an id raise ``InvalidReference`` for a malformed one, ``NotFound`` for an unknown one
    or one that the caller may not see (an atomic resource before it is COMPLETED, without its token), and ``Deleted``
    when the resource is deleted during the call.
    """

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """What is announced in handshakes."""

    @property
    @abstractmethod
    def records(self) -> RecordService:
        """Record streams, for the same caller."""

    @abstractmethod
    async def create(
        self,
        metadata: Metadata,
        *,
        visibility: Visibility = Visibility.LIVE,
        length: int | None = None,
        sha256: bytes | None = None,
        idempotency_key: str | None = None,
    ) -> UploadIngest:
        """Create a resource and open the first session of its upload.

        With an idempotency key that the caller has used before, the session is the next one of that upload, with a
        new token; its snapshot is terminal when that upload has ended, and then nothing can be submitted.

        Raises:
            InvalidArgument: A value cannot be accepted.
            IdempotencyConflict: The key was used with different metadata.
            ContextNotFound, ContextClosed: The context that the metadata names takes no uploads.
            PermissionDenied: A hook of the server refuses it.
            QuotaExceeded, Overloaded, StorageFull, StorageFailure, GoingAway: There is no room.
        """

    @abstractmethod
    async def reopen(self, id: str, token: str) -> UploadIngest:
        """Open the next session of an upload; every older session is fenced.

        What is stored is announced, or cut, first: the session starts at the announced size. Its snapshot is terminal
        when the upload has ended, and then nothing can be submitted.

        Raises:
            TokenRejected: The token does not open this upload.
        """

    @abstractmethod
    async def open_reader(self, id: str, *, token: str | None = None) -> ResourceReader:
        """Open a resource for reading; the caller closes the reader."""

    @abstractmethod
    def statuses(self, id: str, *, token: str | None = None) -> AsyncGenerator[Status, None]:
        """Yield the current status, then the newest whenever it changed.

        Versions strictly rise, intermediate ones may be skipped, and the terminal one comes always and last.
        """

    @abstractmethod
    async def heads(self, id: str, sizes: Sequence[int], *, token: str | None = None) -> tuple[bytes, ...]:
        """Return the heads at ``sizes``, in their order.

        Raises:
            InvalidArgument: More sizes than the limits allow.
            RangeNotSatisfiable: A size is not within ``[0, size]``.
        """

    @abstractmethod
    async def list(self, filter: ListFilter, *, limit: int, page_token: str | None = None) -> Page:
        """Return a page of resources in order of creation.

        Raises:
            InvalidArgument: ``limit`` is below 1 or ``page_token`` is not one of this server.
        """

    @abstractmethod
    async def delete(self, id: str, *, token: str | None = None) -> None:
        """Delete a resource: its uploader and its readers are told, and nothing of it is left."""

    @abstractmethod
    async def create_context(self, attributes: Mapping[str, str]) -> Context:
        """Create a context.

        Raises:
            InvalidArgument: The attributes break the rules of labels.
            QuotaExceeded: Too many contexts are open.
        """

    @abstractmethod
    async def get_context(self, id: str) -> Context:
        """Return a context.

        Raises:
            ContextNotFound: There is none.
        """

    @abstractmethod
    async def close_context(self, id: str) -> Context:
        """Close a context: its unfinished uploads end FAILED, and it takes no more. Idempotent.

        Raises:
            ContextNotFound: There is none.
        """

    @abstractmethod
    def context_events(self, id: str, *, after: int = 0) -> AsyncGenerator[ContextEvent, None]:
        """Yield the events of a context behind number ``after`` that are still known, then new ones, up to CLOSED.

        The server keeps the last events of each context in memory; a slow caller misses the oldest, which the gap in
        their numbers shows.

        Raises:
            ContextNotFound: There is none.
            InvalidArgument: ``after`` is negative.
        """


class ResourceManager(ResourceService):
    """The resources of one server without any bounds of access, as transports and an embedding application see them."""

    @abstractmethod
    def add_base(self, base: str) -> None:
        """Make a transport's public base URL part of the alternatives in every status."""

    @abstractmethod
    def admit(self) -> None:
        """Refuse new connections and requests while the process is near a limit of its own.

        Raises:
            Overloaded: Too few file descriptors are left, or too many requests run.
            GoingAway: The server shuts down.
        """

    @abstractmethod
    async def authenticate(self, credentials: Credentials) -> ResourceService:
        """Return the resources as whoever shows ``credentials`` may use them.

        Transports call it for every request, before any other message of it is processed.

        Raises:
            Unauthenticated: The credentials prove nothing.
            GoingAway: The server shuts down.
        """

    @abstractmethod
    async def authorize_metrics(self, credentials: Credentials) -> None:
        """Return if whoever shows ``credentials`` may read the metrics.

        Raises:
            Unauthenticated, PermissionDenied: They may not.
        """

    @property
    @abstractmethod
    def anonymous(self) -> bool:
        """Whether callers without any credentials are let in."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether the server takes new work: it has started, does not shut down, and its storage works."""

    @property
    def unready_reason(self) -> str | None:
        """Why the server is not :attr:`ready`, in a few words for whoever runs it; ``None`` when it is."""
        return None if self.ready else "starting, or shutting down"

    @property
    @abstractmethod
    def telemetry(self) -> Telemetry:
        """What transports count with."""
