"""Control messages to text frames and back; nothing else knows JSON.

A text frame is a JSON object ``{"type": NAME, "request": NUMBER, …}`` with the fields of the message. Optional fields
that have no value are left out; unknown ones are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from tailrace_common_api import (
    HEAD_SIZE,
    MEBIBYTE,
    ListFilter,
    MessageTooLarge,
    Page,
    Position,
    ProtocolError,
    TailraceError,
    Unsupported,
    Visibility,
)
from tailrace_impl_common.messages import (
    DOWNLOAD_REQUESTS,
    UNARY_REQUESTS,
    UPLOAD_REQUESTS,
    WATCH_REQUESTS,
    Abort,
    Checkpoint,
    Chunk,
    ClientMessage,
    CloseContext,
    Context,
    ContextEvent,
    CreateContext,
    Delete,
    Done,
    End,
    Finish,
    Finished,
    Follow,
    GetContext,
    GetHeads,
    GetStatus,
    Heads,
    Limits,
    List,
    Listed,
    Locate,
    Located,
    Opened,
    OpenUpload,
    Read,
    ReadLines,
    ReopenUpload,
    ServerMessage,
    Started,
    Status,
    Watch,
    WatchContext,
    Watched,
    Window,
)
from tailrace_impl_websocket._codec_values import (
    context_event_to_json,
    context_to_json,
    error_to_json,
    limits_to_json,
    metadata_to_json,
    read_context,
    read_context_event,
    read_error,
    read_limits,
    read_metadata,
    read_start,
    read_state,
    read_status,
    read_visibility,
    start_to_json,
    status_to_json,
)
from tailrace_impl_websocket._fields import Fields, parse_object

SUBPROTOCOL = "tailrace.v1"
"""WebSocket subprotocol; the number rises when old clients could not understand what is said."""
PROTOCOL_VERSION = 1
PATH = "/v1/connect"
"""Path of the endpoint, below the prefix."""
MAX_TEXT_SIZE = MEBIBYTE
"""Largest control message in bytes."""
MAX_REQUEST = 2**32 - 1
"""Largest request number; the smallest is 1."""
MAX_CLOSE_REASON = 123
"""Longest close reason in bytes (RFC 6455, section 5.5)."""

REQUESTS = (*UPLOAD_REQUESTS, *DOWNLOAD_REQUESTS, *WATCH_REQUESTS, *UNARY_REQUESTS)
"""Messages that begin a conversation."""

_TRACE_KEYS = ("traceparent", "tracestate")
_HASH_SIZE = 8
_SHA256_SIZE = 32


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client wants nothing more of this request."""


@dataclass(frozen=True, slots=True)
class Authenticate:
    """The client's first message, where it could show no token in the handshake."""

    token: str


@dataclass(frozen=True, slots=True)
class Ping:
    """The client asks for a sign of life, where it cannot send protocol pings."""


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers ``Ping``."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The server's first message on a connection."""

    protocol: int
    limits: Limits
    keepalive_interval: float
    """Seconds after which a client that cannot send protocol pings should send ``Ping``."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a request, or of the connection."""

    error: TailraceError


_NO_TRACE: Mapping[str, str] = MappingProxyType({})


class FromClient(NamedTuple):
    """A text frame of a client; ``Authenticate`` and ``Ping`` belong to no request."""

    request: int | None
    message: ClientMessage | Cancel | Authenticate | Ping
    trace: Mapping[str, str] = _NO_TRACE
    """Trace context that came with the first message of a request, as in the headers of W3C Trace Context."""


class FromServer(NamedTuple):
    """A text frame of a server; ``Hello``, ``Pong`` and errors of the connection belong to no request."""

    request: int | None
    message: ServerMessage | Hello | Pong | Failure


class Malformed(Exception):
    """A frame that cannot be understood; ``request`` is ``None`` when it does not say which request it is of."""

    def __init__(self, request: int | None, error: TailraceError) -> None:
        super().__init__(str(error))
        self.request = request
        self.error = error


def close_reason(text: str) -> str:
    """Return as much of ``text`` as fits into the reason of a close frame, cut on a code point."""
    return text.encode("utf-8", "replace")[:MAX_CLOSE_REASON].decode("utf-8", "ignore")


def _window(fields: Fields) -> int:
    return fields.optional_count("window") or 0


# Messages of the client


def encode_from_client(
    request: int | None,
    message: ClientMessage | Cancel | Authenticate | Ping,
    trace: Mapping[str, str] = _NO_TRACE,
) -> str:
    """Return the text frame of a message that is no chunk.

    Args:
        request: Number of the request; ``None`` for a message that belongs to none.
        message: What to say.
        trace: Trace context to send along with the first message of a request; what is no trace context in it is left
            out.

    Raises:
        MessageTooLarge: It does not fit into a control message.
    """
    name, fields = _client_fields(message)
    if trace:
        fields["trace"] = {key: trace[key] for key in _TRACE_KEYS if key in trace}
    return _bounded(_to_text(name, request, fields))


def _client_fields(message: ClientMessage | Cancel | Authenticate | Ping) -> tuple[str, dict[str, object]]:
    match message:
        case Window():
            return "window", {"until": message.until}
        case OpenUpload():
            return "open_upload", {
                "metadata": metadata_to_json(message.metadata),
                "visibility": message.visibility.value,
                "length": message.length,
                "sha256": None if message.sha256 is None else message.sha256.hex(),
                "idempotency_key": message.idempotency_key,
            }
        case ReopenUpload():
            return "reopen_upload", {"id": message.id, "token": message.token}
        case Finish():
            return "finish", {"size": message.size, "head": message.head.hex()}
        case Abort():
            return "abort", {"reason": message.reason}
        case Cancel():
            return "cancel", {}
        case Read():
            return "read", {
                "id": message.id,
                "token": message.token,
                "start": message.start,
                "end": message.end,
                "suffix": message.suffix,
                "window": message.window,
            }
        case Follow():
            return "follow", {
                "id": message.id,
                "token": message.token,
                **start_to_json(message.start),
                "window": message.window,
            }
        case ReadLines():
            return "read_lines", {
                "id": message.id,
                "token": message.token,
                "first": message.first,
                "count": message.count,
                "last": message.last,
                "window": message.window,
            }
        case Watch():
            return "watch", {"id": message.id, "token": message.token}
        case GetStatus():
            return "get_status", {"id": message.id, "token": message.token}
        case GetHeads():
            return "get_heads", {"id": message.id, "token": message.token, "sizes": list(message.sizes)}
        case Locate():
            return "locate", {
                "id": message.id,
                "token": message.token,
                "line": message.line,
                "offset": message.offset,
            }
        case List():
            return "list", {
                "labels": dict(message.filter.labels),
                "context": message.filter.context,
                "state": None if message.filter.state is None else message.filter.state.value,
                "created_from": message.filter.created_from,
                "created_before": message.filter.created_before,
                "limit": message.limit,
                "page_token": message.page_token,
            }
        case Delete():
            return "delete", {"id": message.id, "token": message.token}
        case CreateContext():
            return "create_context", {"attributes": dict(message.attributes)}
        case GetContext():
            return "get_context", {"id": message.id}
        case CloseContext():
            return "close_context", {"id": message.id}
        case WatchContext():
            return "watch_context", {"id": message.id, "after": message.after}
        case Authenticate():
            return "authenticate", {"token": message.token}
        case Ping():
            return "ping", {}
        case Chunk():
            raise TypeError("a chunk is no text frame")


def _list_request(fields: Fields) -> List:
    state = fields.optional_text("state")
    return List(
        filter=ListFilter(
            labels=fields.text_mapping("labels"),
            context=fields.optional_text("context"),
            state=None if state is None else read_state(state),
            created_from=fields.optional_number("created_from"),
            created_before=fields.optional_number("created_before"),
        ),
        limit=fields.integer("limit"),
        page_token=fields.optional_text("page_token"),
    )


_CLIENT_DECODERS: Mapping[str, Callable[[Fields], ClientMessage | Cancel]] = {
    "open_upload": lambda fields: OpenUpload(
        metadata=read_metadata(fields.nested("metadata")),
        visibility=read_visibility(fields.optional_text("visibility") or Visibility.LIVE.value),
        length=fields.optional_count("length"),
        sha256=fields.optional_digest("sha256", _SHA256_SIZE),
        idempotency_key=fields.optional_text("idempotency_key"),
    ),
    "reopen_upload": lambda fields: ReopenUpload(id=fields.text("id"), token=fields.text("token")),
    "finish": lambda fields: Finish(fields.count("size"), fields.digest("head", HEAD_SIZE)),
    "abort": lambda fields: Abort(fields.text("reason")),
    "cancel": lambda _: Cancel(),
    "read": lambda fields: Read(
        id=fields.text("id"),
        token=fields.optional_text("token"),
        start=fields.optional_integer("start") or 0,
        end=fields.optional_integer("end"),
        suffix=fields.optional_integer("suffix"),
        window=_window(fields),
    ),
    "follow": lambda fields: Follow(
        id=fields.text("id"), token=fields.optional_text("token"), start=read_start(fields), window=_window(fields)
    ),
    "read_lines": lambda fields: ReadLines(
        id=fields.text("id"),
        token=fields.optional_text("token"),
        first=fields.optional_integer("first") or 0,
        count=fields.optional_integer("count"),
        last=fields.optional_integer("last"),
        window=_window(fields),
    ),
    "window": lambda fields: Window(fields.count("until")),
    "watch": lambda fields: Watch(id=fields.text("id"), token=fields.optional_text("token")),
    "get_status": lambda fields: GetStatus(id=fields.text("id"), token=fields.optional_text("token")),
    "get_heads": lambda fields: GetHeads(
        id=fields.text("id"), token=fields.optional_text("token"), sizes=fields.integers("sizes")
    ),
    "locate": lambda fields: Locate(
        id=fields.text("id"),
        token=fields.optional_text("token"),
        line=fields.optional_integer("line"),
        offset=fields.optional_integer("offset"),
    ),
    "list": _list_request,
    "delete": lambda fields: Delete(id=fields.text("id"), token=fields.optional_text("token")),
    "create_context": lambda fields: CreateContext(attributes=fields.text_mapping("attributes")),
    "get_context": lambda fields: GetContext(id=fields.text("id")),
    "close_context": lambda fields: CloseContext(id=fields.text("id")),
    "watch_context": lambda fields: WatchContext(id=fields.text("id"), after=fields.optional_count("after") or 0),
}


def decode_from_client(text: str) -> FromClient:
    """Return the message of a client's text frame.

    Raises:
        Malformed: The frame is no message of a client.
    """
    name, fields = _parse(text)
    if name == "ping":
        return FromClient(None, Ping())
    if name == "authenticate":
        try:
            return FromClient(None, Authenticate(fields.text("token")))
        except TailraceError as error:
            raise Malformed(None, error) from None
    request = _request(fields)
    decoder = _CLIENT_DECODERS.get(name)
    if decoder is None:
        raise Malformed(request, Unsupported(f"unknown message type {name[:40]!a}"))
    try:
        message = decoder(fields)
        return FromClient(request, message, _trace(fields) if isinstance(message, REQUESTS) else _NO_TRACE)
    except TailraceError as error:
        raise Malformed(request, error) from None


def _trace(fields: Fields) -> Mapping[str, str]:
    trace = fields.text_mapping("trace")
    return {key: trace[key] for key in _TRACE_KEYS if key in trace}


# Messages of the server


def encode_from_server(request: int | None, message: ServerMessage | Hello | Pong | Failure) -> str:
    """Return the text frame of a message that is no chunk.

    Raises:
        MessageTooLarge: It does not fit into a control message; never raised for an error.
    """
    name, fields = _server_fields(message)
    text = _to_text(name, request, fields)
    # An error repeats at most what a request held, and must arrive.
    return text if isinstance(message, Failure) else _bounded(text)


def _server_fields(message: ServerMessage | Hello | Pong | Failure) -> tuple[str, dict[str, object]]:
    match message:
        case Checkpoint():
            return "checkpoint", {"size": message.size, "newlines": message.newlines, "head": message.head.hex()}
        case Window():
            return "window", {"until": message.until}
        case Status():
            return "status", {"status": status_to_json(message)}
        case Opened():
            return "opened", {
                "status": status_to_json(message.status),
                "token": message.token,
                "epoch": message.epoch,
                "offset": message.offset,
                "newlines": message.newlines,
                "head": message.head.hex(),
                "until": message.until,
                "limits": limits_to_json(message.limits),
            }
        case Finished():
            return "finished", {"status": None if message.status is None else status_to_json(message.status)}
        case Started():
            return "started", {
                "offset": message.offset,
                "end": message.end,
                "line": message.line,
                "status": status_to_json(message.status),
                "limits": limits_to_json(message.limits),
            }
        case End():
            return "end", {
                "offset": message.offset,
                "previous": message.previous.hex() or None,
                "status": status_to_json(message.status),
            }
        case Watched():
            return "watched", {}
        case Heads():
            return "heads", {"heads": [head.hex() for head in message.heads]}
        case Located():
            return "located", {"line": message.position.line, "offset": message.position.offset}
        case Listed():
            return "listed", {
                "statuses": [status_to_json(status) for status in message.page.statuses],
                "next_token": message.page.next_token,
            }
        case Done():
            return "done", {}
        case Context():
            return "context", {"context": context_to_json(message)}
        case ContextEvent():
            return "context_event", context_event_to_json(message)
        case Failure():
            return "error", error_to_json(message.error)
        case Pong():
            return "pong", {}
        case Hello():
            return "hello", {
                "protocol": message.protocol,
                "limits": limits_to_json(message.limits),
                "keepalive_interval": message.keepalive_interval,
            }
        case Chunk():
            raise TypeError("a chunk is no text frame")


def _finished(fields: Fields) -> Finished:
    status = fields.optional_nested("status")
    return Finished(None if status is None else read_status(status))


_SERVER_DECODERS: Mapping[str, Callable[[Fields], ServerMessage]] = {
    "opened": lambda fields: Opened(
        status=read_status(fields.nested("status")),
        token=fields.text("token"),
        epoch=fields.count("epoch"),
        offset=fields.count("offset"),
        newlines=fields.count("newlines"),
        head=fields.digest("head", HEAD_SIZE),
        until=fields.count("until"),
        limits=read_limits(fields.nested("limits")),
    ),
    "window": lambda fields: Window(fields.count("until")),
    "checkpoint": lambda fields: Checkpoint(
        fields.count("size"), fields.count("newlines"), fields.digest("head", HEAD_SIZE)
    ),
    "finished": _finished,
    "started": lambda fields: Started(
        offset=fields.count("offset"),
        end=fields.optional_count("end"),
        line=fields.optional_count("line"),
        status=read_status(fields.nested("status")),
        limits=read_limits(fields.nested("limits")),
    ),
    "end": lambda fields: End(
        offset=fields.count("offset"),
        previous=fields.optional_digest("previous", _HASH_SIZE) or b"",
        status=read_status(fields.nested("status")),
    ),
    "status": lambda fields: read_status(fields.nested("status")),
    "watched": lambda _: Watched(),
    "heads": lambda fields: Heads(fields.digests("heads", HEAD_SIZE)),
    "located": lambda fields: Located(Position(fields.count("line"), fields.count("offset"))),
    "listed": lambda fields: Listed(
        Page(tuple(read_status(status) for status in fields.all_nested("statuses")), fields.optional_text("next_token"))
    ),
    "done": lambda _: Done(),
    "context": lambda fields: read_context(fields.nested("context")),
    "context_event": read_context_event,
}


def decode_from_server(text: str) -> FromServer:
    """Return the message of a server's text frame.

    Raises:
        Malformed: The frame is no message of a server.
    """
    name, fields = _parse(text)
    try:
        if name == "pong":
            return FromServer(None, Pong())
        if name == "hello":
            return FromServer(None, _hello(fields))
        if name == "error" and not fields.has("request"):
            return FromServer(None, Failure(read_error(fields)))
    except TailraceError as error:
        raise Malformed(None, error) from None
    request = _request(fields)
    try:
        if name == "error":
            return FromServer(request, Failure(read_error(fields)))
        decoder = _SERVER_DECODERS.get(name)
        if decoder is None:
            raise Unsupported(f"unknown message type {name[:40]!a}")
        return FromServer(request, decoder(fields))
    except TailraceError as error:
        raise Malformed(request, error) from None


def _hello(fields: Fields) -> Hello:
    protocol = fields.integer("protocol")
    if protocol != PROTOCOL_VERSION:
        raise Unsupported(f"the server speaks version {protocol} of the protocol")
    return Hello(protocol, read_limits(fields.nested("limits")), fields.number("keepalive_interval"))


# Text frames

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _to_text(name: str, request: int | None, fields: Mapping[str, object]) -> str:
    values: dict[str, object] = {"type": name}
    if request is not None:
        values["request"] = request
    values.update((key, value) for key, value in fields.items() if value is not None)
    text = _ENCODER.encode(values)
    # Halves of surrogate pairs (names of files in error texts) have no UTF-8.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def text_size(text: str) -> int:
    """Return the size of a text frame in bytes."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _bounded(text: str) -> str:
    size = text_size(text)
    if size > MAX_TEXT_SIZE:
        raise MessageTooLarge(size=size, maximum=MAX_TEXT_SIZE)
    return text


def _parse(text: str) -> tuple[str, Fields]:
    try:
        fields = parse_object(text)
        return fields.text("type"), fields
    except ProtocolError as error:
        raise Malformed(None, error) from None


def _request(fields: Fields) -> int:
    try:
        request = fields.count("request", minimum=1)
        if request > MAX_REQUEST:
            raise ProtocolError(f"request {request} is above {MAX_REQUEST}")
    except ProtocolError as error:
        raise Malformed(None, error) from None
    return request
