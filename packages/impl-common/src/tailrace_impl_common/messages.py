r"""What is said on the wire, independent of any encoding.

A conversation begins with one request message of the client. Unary requests get one answer. Streaming requests
exchange messages until the server's last one (``Finished``, ``End``), an error, or a cancellation by the client.

=================  =====================================  ==========================================
request            further messages of the client         messages of the server
=================  =====================================  ==========================================
``OpenUpload``     ``Chunk``\*, ``Finish`` | ``Abort``    ``Opened``, (``Checkpoint`` | ``Window``)\*, ``Finished``
``ReopenUpload``   the same                               the same
``Read``           ``Window``\*                           ``Started``, ``Chunk``\*, ``End``
``Follow``         ``Window``\*                           the same
``ReadLines``      ``Window``\*                           the same
``Watch``          –                                      ``Status``\*, ``Watched``
``GetStatus``      –                                      ``Status``
``GetHeads``       –                                      ``Heads``
``Locate``         –                                      ``Located``
``List``           –                                      ``Listed``
``Delete``         –                                      ``Done``
``CreateContext``  –                                      ``Context``
``GetContext``     –                                      ``Context``
``CloseContext``   –                                      ``Context``
``WatchContext``   –                                      ``ContextEvent``\*, ``Watched``
=================  =====================================  ==========================================

Records have messages of their own, in :mod:`tailrace_impl_common.record_messages`.

Errors are not messages here: a stream raises them, and each transport carries them in its own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tailrace_common_api import (
    Checkpoint,
    Context,
    ContextEvent,
    InvalidArgument,
    Limits,
    ListFilter,
    Metadata,
    Page,
    Position,
    Start,
    Status,
    Visibility,
)
from tailrace_impl_common.record_messages import (
    RECORD_STREAM_REQUESTS,
    GetQueue,
    QueueFigures,
    RecordClientMessage,
    RecordServerMessage,
    RecordStreamRequest,
)

Buffer = bytes | bytearray | memoryview


class Chunk(NamedTuple):
    """A piece of a byte stream.

    A named tuple and not a dataclass because one is made for every message of a transfer.
    """

    offset: int
    """Offset of the first byte in the resource."""
    data: Buffer
    """The bytes; at least one."""
    hash: bytes
    """Hash of ``data``, 8 bytes; see :func:`chunk_hash`."""
    previous: bytes
    """Hash of the previous chunk of this transfer; empty for its first."""
    checkpoint: Checkpoint | None = None
    """Downloads only: the announced checkpoint at exactly :attr:`end`, whenever the chunk ends at one. It travels with
    the chunk, not behind it in a message of its own, because that would double the messages of a live follower."""

    @property
    def end(self) -> int:
        """Offset behind the last byte."""
        return self.offset + len(self.data)


@dataclass(frozen=True, slots=True)
class Window:
    """Grants bytes: the receiver of data takes everything below ``until``. Repeats are harmless."""

    until: int
    """Absolute offset up to which may be sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenUpload:
    """Begins an upload."""

    metadata: Metadata
    visibility: Visibility = Visibility.LIVE
    length: int | None = None
    """Declared length in bytes."""
    sha256: bytes | None = None
    """Declared SHA-256, 32 bytes."""
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReopenUpload:
    """Continues an upload."""

    id: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Answers a request to upload: the client may send from ``offset`` up to ``until``.

    With a terminal status the upload has ended and the conversation is over.
    """

    status: Status
    token: str = field(repr=False)
    """Upload token of the next session; empty when the upload has ended."""
    epoch: int
    offset: int
    """Where the upload continues: always the announced size."""
    newlines: int
    """Newlines below ``offset``; 0 without line access."""
    head: bytes
    """Head at ``offset``."""
    until: int
    """Absolute offset up to which may be sent."""
    limits: Limits


@dataclass(frozen=True, slots=True)
class Finish:
    """Ends the input: the resource has ``size`` bytes with this head."""

    size: int
    head: bytes


@dataclass(frozen=True, slots=True)
class Abort:
    """Gives the upload up."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The upload has ended; ``None`` when nothing is left of it (an atomic upload that was aborted)."""

    status: Status | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Asks for the bytes ``[start, end)``, or for the last ``suffix`` bytes."""

    id: str
    token: str | None = field(default=None, repr=False)
    """Upload token, where the resource is not visible without it."""
    start: int = 0
    end: int | None = None
    """``None``: the size at the time of the request."""
    suffix: int | None = None
    """Instead of ``start`` and ``end``."""
    window: int = 0
    """Bytes granted from the first byte on; 0: no window of the application."""
    chunk_size: int = 0
    """Bytes of the largest chunk that suits the reader; 0: what suits the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """Asks for what is there from ``start``, and then for what is announced, until the resource ends."""

    id: str
    token: str | None = field(default=None, repr=False)
    start: Start
    window: int = 0
    chunk_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLines:
    """Asks for the lines ``[first, first + count)``, or for the last ``last`` lines."""

    id: str
    token: str | None = field(default=None, repr=False)
    first: int = 0
    count: int | None = None
    """``None``: all from ``first`` on."""
    last: int | None = None
    """Instead of ``first`` and ``count``."""
    window: int = 0
    chunk_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Begins the answer to ``Read``, ``Follow`` and ``ReadLines``."""

    offset: int
    """Offset of the first byte that will be sent."""
    end: int | None
    """Offset behind the last byte that will be sent; ``None`` for a follower."""
    line: int | None
    """Number of the first line, in the answer to ``ReadLines``; else ``None``."""
    status: Status
    """Status at which the request was resolved."""
    limits: Limits
    """What the server accepts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Ends a byte stream: nothing was lost before it."""

    offset: int
    """Offset behind the last byte that was sent."""
    previous: bytes
    """Hash of the last chunk; empty when there was none."""
    status: Status
    """Status at that time; terminal for a follower. Where its size is ``offset``, its head is that of all that was sent
    to a reader that started at 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Asks for the status now and whenever it changes."""

    id: str
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Watched:
    """Ends the answer to ``Watch``, behind the terminal status, and to ``WatchContext``, behind its last event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GetStatus:
    """Asks for the status."""

    id: str
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GetHeads:
    """Asks for the heads at ``sizes``."""

    id: str
    token: str | None = field(default=None, repr=False)
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Heads:
    """Answers ``GetHeads``, in its order."""

    heads: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Locate:
    """Asks for the place of line ``line``, or of the line that holds byte ``offset``: exactly one of them."""

    id: str
    token: str | None = field(default=None, repr=False)
    line: int | None = None
    offset: int | None = None

    def __post_init__(self) -> None:
        if (self.line is None) == (self.offset is None):
            raise InvalidArgument(field="locate", problem="exactly one of line and offset is needed")


@dataclass(frozen=True, slots=True)
class Located:
    """Answers ``Locate``."""

    position: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class List:
    """Asks for a page of resources."""

    filter: ListFilter
    limit: int
    page_token: str | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """Answers ``List``."""

    page: Page


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Asks to delete a resource."""

    id: str
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateContext:
    """Asks for a new context."""

    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GetContext:
    """Asks for a context."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseContext:
    """Asks to close a context: its unfinished uploads fail, and it takes no more. Closing it again does nothing."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchContext:
    """Asks for what happens in a context: the events behind ``after`` that the server still has, then new ones."""

    id: str
    after: int = 0
    """Sequence of the last event that is known; 0 for none."""


@dataclass(frozen=True, slots=True)
class Done:
    """Answers a request that has no other answer."""


UploadRequest = OpenUpload | ReopenUpload
DownloadRequest = Read | Follow | ReadLines
WatchRequest = Watch | WatchContext
UnaryRequest = GetStatus | GetHeads | Locate | List | Delete | CreateContext | GetContext | CloseContext | GetQueue
Request = UploadRequest | DownloadRequest | WatchRequest | RecordStreamRequest | UnaryRequest
"""First message of a conversation."""

ClientMessage = Request | Chunk | Finish | Abort | Window | RecordClientMessage
"""Everything that a client says."""

UnaryAnswer = Status | Heads | Located | Listed | Done | Context | QueueFigures
ServerMessage = (
    Opened
    | Window
    | Checkpoint
    | Finished
    | Started
    | Chunk
    | End
    | ContextEvent
    | Watched
    | RecordServerMessage
    | UnaryAnswer
)
"""Everything that a server says, errors apart."""

UPLOAD_REQUESTS = (OpenUpload, ReopenUpload)
DOWNLOAD_REQUESTS = (Read, Follow, ReadLines)
WATCH_REQUESTS = (Watch, WatchContext)
UNARY_REQUESTS = (GetStatus, GetHeads, Locate, List, Delete, CreateContext, GetContext, CloseContext, GetQueue)

__all__ = [
    "DOWNLOAD_REQUESTS",
    "RECORD_STREAM_REQUESTS",
    "UNARY_REQUESTS",
    "UPLOAD_REQUESTS",
    "WATCH_REQUESTS",
    "Abort",
    "Buffer",
    "Checkpoint",
    "Chunk",
    "ClientMessage",
    "CloseContext",
    "Context",
    "ContextEvent",
    "CreateContext",
    "Delete",
    "Done",
    "DownloadRequest",
    "End",
    "Finish",
    "Finished",
    "Follow",
    "GetContext",
    "GetHeads",
    "GetStatus",
    "Heads",
    "Limits",
    "List",
    "Listed",
    "Locate",
    "Located",
    "OpenUpload",
    "Opened",
    "Read",
    "ReadLines",
    "RecordStreamRequest",
    "ReopenUpload",
    "Request",
    "ServerMessage",
    "Started",
    "Status",
    "UnaryAnswer",
    "UnaryRequest",
    "UploadRequest",
    "Watch",
    "WatchContext",
    "WatchRequest",
    "Watched",
    "Window",
]
