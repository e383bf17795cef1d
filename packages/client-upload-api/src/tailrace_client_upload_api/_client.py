"""Uploading a resource while it is produced."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tailrace_common_api import (
    MAX_OFFSET,
    Checkpoint,
    InvalidArgument,
    Limits,
    Metadata,
    Status,
    TailraceError,
    Visibility,
)

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Wait:
    """While the server is away or slow, :meth:`UploadSession.write` waits."""


WAIT = Wait()
"""The default of an upload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolToDisk:
    """While the server is away or slow, what is written goes to a file; once it is full, writing waits."""

    directory: str | os.PathLike[str]
    """Folder of the spool file; made if it is not there."""
    max_bytes: int = 1024**3
    """Most bytes that wait on disk."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise InvalidArgument(field="max_bytes", problem=f"{self.max_bytes} is below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DropOldest:
    """While the server is away or slow, what is written waits in memory, and writing never waits.

    When there is too much of it, the oldest lines are dropped, and a line in their place says how many bytes that were.
    """

    max_bytes: int = 16 * 1024 * 1024
    """Most bytes that wait in memory."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1024:
            raise InvalidArgument(field="max_bytes", problem=f"{self.max_bytes} is below 1024")


WhileAway = Wait | SpoolToDisk | DropOldest
"""What becomes of written bytes that the server does not take at the moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRequest:
    """A new upload.

    Raises:
        InvalidArgument: A value breaks the rule that its docstring states.
    """

    metadata: Metadata
    """What is said of the resource."""
    visibility: Visibility = Visibility.LIVE
    """Who sees it before it is complete."""
    length: int | None = None
    """Declared length in bytes, at most 2^53 - 1; ``None`` when it is not known, which is the normal case."""
    sha256: bytes | None = None
    """Declared SHA-256 of the content, 32 bytes; ``None`` for none."""
    idempotency_key: str | None = None
    """Key under which a repeated request opens the same upload again; 1 to 255 characters."""
    while_away: WhileAway = WAIT
    """What becomes of written bytes that the server does not take at the moment."""
    prefix: Callable[[int], AsyncIterable[Buffer]] | None = None
    """Yields the first bytes of the source, as many as it is called with, for a server that lost more than the session
    still has, and for a key under which there are bytes already. ``None`` where they cannot be read again."""

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 0:
            raise InvalidArgument(field="length", problem="negative")
        if self.length is not None and self.length > MAX_OFFSET:
            # It would not get through every transport, and each would say so in its own way.
            raise InvalidArgument(field="length", problem=f"above {MAX_OFFSET}, the largest size of a resource")
        if self.sha256 is not None and len(self.sha256) != 32:
            raise InvalidArgument(field="sha256", problem=f"{len(self.sha256)} bytes; a SHA-256 has 32")
        if self.idempotency_key is not None and not 1 <= len(self.idempotency_key) <= 255:
            raise InvalidArgument(field="idempotency_key", problem="not of 1 to 255 characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReopenRequest:
    """The continuation of an upload that lost its session."""

    id: str
    """Resource id."""
    token: str = field(repr=False)
    """Upload token of the last session."""
    prefix: Callable[[int], AsyncIterable[Buffer]] | None = None
    """Yields the first bytes of the source, as many as it is called with: what the server has is compared with them
    before anything is sent, and it is asked again for a server that lost more than the session still has. ``None`` when
    the server cannot have any."""
    while_away: WhileAway = WAIT
    """What becomes of written bytes that the server does not take at the moment."""


class UploadSession(ABC):
    """An open upload.

    Entering the context manager opens the upload: the server has answered before ``__aenter__`` returns, and no data
    has left before that. Leaving it normally completes the upload; leaving it with an exception (cancellation too)
    aborts it with that reason. The reference, token, limits and status are available once it is open.

    Belongs to one event loop. One task writes at a time; every other method may be called from any task. A write that
    is cancelled may have handed over part of its bytes: the upload is then to be aborted, which leaving the context
    manager does.

    When the server ends the upload (quota, disk full, deleted, fenced), the running or next call raises that error. A
    lost connection, a server that restarts and one that is overloaded do not end it: the session reconnects and
    continues where the server stands, for as long as the client's ``reconnect_timeout`` says; :attr:`interruption`
    tells. What was written and is not announced is kept for that, at most two windows. Meanwhile :meth:`write`,
    :meth:`flush`, :meth:`finish` and :meth:`detach` wait, and :meth:`abort` ends at once. When the session comes back
    it may find ``ResourceFailed`` (the grace period is over), ``SourceChanged`` (another session wrote other bytes) or
    ``DataLost`` (the server has less than it announced, and the bytes are gone).
    """

    @property
    @abstractmethod
    def reference(self) -> str:
        """Reference of the resource: it can be handed out as soon as the upload is open."""

    @property
    @abstractmethod
    def id(self) -> str:
        """Resource id."""

    @property
    @abstractmethod
    def token(self) -> str:
        """Token that opens this upload again. A secret."""

    @property
    @abstractmethod
    def epoch(self) -> int:
        """Epoch of this session; the next one has a higher one."""

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """What the server accepts."""

    @property
    @abstractmethod
    def offset(self) -> int:
        """Bytes of the resource that were handed to :meth:`write`, or were there when the session opened."""

    @property
    @abstractmethod
    def announced(self) -> Checkpoint:
        """The last announced checkpoint: what lies below it need not be kept."""

    @property
    @abstractmethod
    def status(self) -> Status:
        """The last status that the server sent: the one of the opening, or the final one."""

    @property
    def interruption(self) -> TailraceError | None:
        """Why there is no connection at the moment, while the session tries to come back; else ``None``."""
        return None

    async def interruptions(self) -> AsyncGenerator[TailraceError | None, None]:
        """Yield :attr:`interruption` whenever it changed, latest wins; ends with the session."""
        if self.interruption is not None:
            yield self.interruption

    @abstractmethod
    async def open(self) -> None:
        """Open the upload; called by ``__aenter__``, and harmless when it is open.

        Raises:
            InvalidArgument, IdempotencyConflict, QuotaExceeded, Overloaded, StorageFull: The server refuses it.
            TokenRejected, NotFound: A reopened upload does not exist, or not with this token.
            ConnectionLost, DeadlineExceeded: The server cannot be reached, or does not answer.
        """

    @abstractmethod
    async def write(self, data: Buffer) -> None:
        """Append bytes.

        Returns when they are handed over; waits only while the granted window is used up. Small writes are gathered
        into one chunk while the previous one is on its way. Writing nothing does nothing.

        Args:
            data: Bytes to append; may be changed once this returns.

        Raises:
            TailraceError: The upload has ended: the server's error, or ``ConnectionLost``.
        """

    @abstractmethod
    async def flush(self) -> Checkpoint:
        """Wait until everything written before is announced, and return the checkpoint.

        Raises:
            TailraceError: As for :meth:`write`.
        """

    @abstractmethod
    async def finish(self) -> Status:
        """Complete the upload and return the final status; repeating it returns the same status.

        The resource is COMPLETED, and on disk, when this returns; sizes and heads of both sides agree. When it is
        cancelled nothing is decided: it can be called again, or the upload aborted.

        Raises:
            IntegrityError: They do not.
            LengthMismatch, DigestMismatch: What was declared is not met.
            TailraceError: As for :meth:`write`.
        """

    @abstractmethod
    async def abort(self, reason: str = "aborted by the client") -> Status | None:
        """End the upload as FAILED with ``reason``; harmless when it has ended already.

        Takes effect at once: what was written and has not left is dropped, what was announced stays readable.

        Returns:
            The final status; ``None`` when there is none: an atomic upload is deleted, and a server that cannot be
            reached fails the upload by itself after its grace period.
        """

    @abstractmethod
    def checkpoints(self) -> AsyncGenerator[Checkpoint, None]:
        """Yield the announced checkpoint whenever it changed, latest wins; ends when the upload is complete.

        Raises:
            TailraceError: As for :meth:`write`.
        """

    @abstractmethod
    async def detach(self) -> None:
        """End the session and leave the upload open: it can be reopened within the server's grace period.

        What was written is on its way when this returns, and is announced if the connection holds. Leaving the context
        manager does nothing more then. Idempotent.
        """

    async def send_all(self, source: Iterable[Buffer] | AsyncIterable[Buffer]) -> int:
        """Write everything that ``source`` yields, as it comes, and return how many bytes that was.

        The source belongs to the caller: an async one is to be closed by it.

        Raises:
            TailraceError: As for :meth:`write`.
        """
        total = 0
        if isinstance(source, AsyncIterable):
            async for piece in source:
                await self.write(piece)
                total += len(piece)
        else:
            for piece in source:
                await self.write(piece)
                total += len(piece)
        return total

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is not None:
            await self.abort(_reason_of(exc))
        elif not self.status.state.terminal:
            try:
                await self.finish()
            except BaseException as failure:
                # Harmless where finishing has failed; where it was cancelled, the upload is not left open.
                await self.abort(_reason_of(failure))
                raise


def _reason_of(exc: BaseException) -> str:
    """Say why an upload was given up, from the exception that ended its block."""
    name = type(exc).__name__
    if name in ("CancelledError", "KeyboardInterrupt"):
        return "cancelled"
    text = str(exc)
    return f"{name}: {text}" if text else name


class UploadClient(ABC):
    """Opens uploads; any number of them run concurrently over one client."""

    @abstractmethod
    def start_upload(self, request: UploadRequest) -> UploadSession:
        """Prepare a new upload; it opens when the session is entered."""

    @abstractmethod
    def resume_upload(self, request: ReopenRequest) -> UploadSession:
        """Prepare the continuation of an upload; it opens when the session is entered.

        The session then stands at :attr:`UploadSession.offset`: the caller goes on writing from there.
        :meth:`UploadSession.open` raises ``SourceChanged`` when the source is not the one that was uploaded.
        """

    def upload(
        self,
        name: str,
        *,
        content_type: str = "application/octet-stream",
        lines: bool = False,
        labels: Mapping[str, str] | None = None,
        context: str | None = None,
        visibility: Visibility = Visibility.LIVE,
        length: int | None = None,
        sha256: bytes | None = None,
        idempotency_key: str | None = None,
        while_away: WhileAway = WAIT,
    ) -> UploadSession:
        """Prepare a new upload; see :class:`Metadata` and :class:`UploadRequest` for the arguments.

        Raises:
            InvalidArgument: A value cannot be accepted.
        """
        metadata = Metadata(
            name=name, content_type=content_type, lines=lines, labels=dict(labels or {}), context=context
        )
        return self.start_upload(
            UploadRequest(
                metadata=metadata,
                visibility=visibility,
                length=length,
                sha256=sha256,
                idempotency_key=idempotency_key,
                while_away=while_away,
            )
        )
