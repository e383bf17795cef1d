"""Control messages to text frames and back; nothing above this module knows JSON.

A text frame is a JSON object ``{"type": NAME, "request": NUMBER, …}`` with the fields of the message. Optional fields
that have no value are left out; unknown ones are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from tailrace_common_api import (
    HEAD_SIZE,
    MEBIBYTE,
    InvalidArgument,
    MessageTooLarge,
    ProtocolError,
    TailraceError,
    Unsupported,
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
from tailrace_impl_common.record_messages import (
    RECORD_STREAM_REQUESTS,
    BulkCommitted,
    BulkOpened,
    CommitBulk,
    Credit,
    CreditSet,
    Deliveries,
    GetQueue,
    Leave,
    Left,
    OpenBulk,
    Query,
    QueryEnd,
    QueryStarted,
    QueueFigures,
    RecordBatch,
    Settle,
    Settled,
    Work,
    WorkOpened,
)
from tailrace_impl_websocket._codec_connection import (
    PROTOCOL_VERSION,
    Authenticate,
    Cancel,
    Failure,
    Hello,
    Ping,
    Pong,
    connection_request_to_json,
    connection_response_to_json,
    read_connection_request,
    read_connection_response,
    read_failure,
)
from tailrace_impl_websocket._codec_contexts import (
    CONTEXT_REQUEST_READERS,
    CONTEXT_RESPONSE_READERS,
    context_request_to_json,
    context_response_to_json,
)
from tailrace_impl_websocket._codec_download import (
    DOWNLOAD_REQUEST_READERS,
    DOWNLOAD_RESPONSE_READERS,
    download_request_to_json,
    download_response_to_json,
)
from tailrace_impl_websocket._codec_records import (
    RECORD_REQUEST_READERS,
    RECORD_RESPONSE_READERS,
    record_request_to_json,
    record_response_to_json,
)
from tailrace_impl_websocket._codec_status import (
    STATUS_REQUEST_READERS,
    STATUS_RESPONSE_READERS,
    status_request_to_json,
    status_response_to_json,
)
from tailrace_impl_websocket._codec_upload import (
    UPLOAD_REQUEST_READERS,
    UPLOAD_RESPONSE_READERS,
    upload_request_to_json,
    upload_response_to_json,
)
from tailrace_impl_websocket._fields import Fields, parse_object

SUBPROTOCOL = "tailrace.v1"
"""WebSocket subprotocol; the number rises when old clients could not understand what is said."""
PATH = "/v1/connect"
"""Path of the endpoint, below the prefix."""
MAX_TEXT_SIZE = MEBIBYTE
"""Largest control message in bytes."""
MAX_REQUEST = 2**32 - 1
"""Largest request number; the smallest is 1."""
MAX_CLOSE_REASON = 123
"""Longest close reason in bytes (RFC 6455, section 5.5)."""

REQUESTS = (*UPLOAD_REQUESTS, *DOWNLOAD_REQUESTS, *WATCH_REQUESTS, *RECORD_STREAM_REQUESTS, *UNARY_REQUESTS)
"""Messages that begin a conversation."""

_TRACE_KEYS = ("traceparent", "tracestate")
_MAX_TRACE = 512
"""Longest value of a trace context, in characters; what is longer is left out, as W3C Trace Context allows."""
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


# Messages of the client


def encode_from_client(
    request: int | None,
    message: ClientMessage | Cancel | Authenticate | Ping,
    trace: Mapping[str, str] = _NO_TRACE,
) -> str:
    """Return the text frame of a message that has one.

    Args:
        request: Number of the request; ``None`` for a message that belongs to none.
        message: What to say.
        trace: Trace context to send along with the first message of a request, as in the headers of W3C Trace Context;
            whatever else is in it is left out.

    Raises:
        MessageTooLarge: It does not fit into a control message.
        InvalidArgument: A value in it cannot be said in JSON.
    """
    if type(message) is Window and request is not None and not trace:
        return _window_text(request, message)
    name, fields = _client_fields(message)
    if trace:
        fields["trace"] = _only_trace(trace) or None
    try:
        text = _to_json(name, request, fields)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(field=type(message).__name__, problem=str(error)) from None
    clean = _clean(text)
    if clean != text and not isinstance(message, Abort | Settle):
        # What is for people to read is sent as far as it can be; a key or a name would be another one.
        raise InvalidArgument(field=type(message).__name__, problem="holds half of a surrogate pair")
    return _bounded(clean)


def _client_fields(message: ClientMessage | Cancel | Authenticate | Ping) -> tuple[str, dict[str, object]]:
    match message:
        case OpenUpload() | ReopenUpload() | Finish() | Abort():
            return upload_request_to_json(message)
        case Read() | Follow() | ReadLines() | Window():
            return download_request_to_json(message)
        case Watch() | GetStatus() | GetHeads() | Locate() | List() | Delete():
            return status_request_to_json(message)
        case CreateContext() | GetContext() | CloseContext() | WatchContext():
            return context_request_to_json(message)
        case OpenBulk() | CommitBulk() | Query() | Work() | Credit() | Settle() | Leave() | GetQueue():
            return record_request_to_json(message)
        case Authenticate() | Cancel() | Ping():
            return connection_request_to_json(message)
        case Chunk() | RecordBatch():
            raise TypeError(f"{type(message).__name__} is no text frame")


_CLIENT_READERS: Mapping[str, Callable[[Fields], ClientMessage | Cancel]] = {
    **UPLOAD_REQUEST_READERS,
    **DOWNLOAD_REQUEST_READERS,
    **STATUS_REQUEST_READERS,
    **CONTEXT_REQUEST_READERS,
    **RECORD_REQUEST_READERS,
    "cancel": lambda _: Cancel(),
}


def decode_from_client(text: str) -> FromClient:
    """Return the message of a client's text frame.

    Raises:
        Malformed: The frame is no message of a client.
    """
    name, fields = _parse(text)
    try:
        unnumbered = read_connection_request(name, fields)
    except TailraceError as error:
        raise Malformed(None, error) from None
    if unnumbered is not None:
        return FromClient(None, unnumbered)
    request = _request(fields)
    reader = _CLIENT_READERS.get(name)
    if reader is None:
        raise Malformed(request, Unsupported(f"unknown message type {name[:40]!a}"))
    try:
        message = reader(fields)
        trace = _only_trace(fields.text_mapping("trace")) if isinstance(message, REQUESTS) else _NO_TRACE
        return FromClient(request, message, trace)
    except TailraceError as error:
        raise Malformed(request, error) from None


def _only_trace(values: Mapping[str, str]) -> Mapping[str, str]:
    return {key: values[key] for key in _TRACE_KEYS if len(values.get(key, "")) in range(1, _MAX_TRACE + 1)}


# Messages of the server


def encode_from_server(request: int | None, message: ServerMessage | Hello | Pong | Failure) -> str:
    """Return the text frame of a message that has one.

    Raises:
        MessageTooLarge: It does not fit into a control message; never raised for an error.
    """
    if type(message) is Window and request is not None:
        return _window_text(request, message)
    if type(message) is Checkpoint and request is not None:
        return _checkpoint_text(request, message)
    name, fields = _server_fields(message)
    text = _clean(_to_json(name, request, fields))
    # An error repeats at most what a request held, and must arrive.
    return text if isinstance(message, Failure) else _bounded(text)


def _server_fields(message: ServerMessage | Hello | Pong | Failure) -> tuple[str, dict[str, object]]:
    match message:
        case Checkpoint() | Window() | Opened() | Finished():
            return upload_response_to_json(message)
        case Started() | End():
            return download_response_to_json(message)
        case Status() | Watched() | Heads() | Located() | Listed() | Done():
            return status_response_to_json(message)
        case Context() | ContextEvent():
            return context_response_to_json(message)
        case BulkOpened() | BulkCommitted() | QueryStarted() | QueryEnd():
            return record_response_to_json(message)
        case WorkOpened() | CreditSet() | Settled() | Left() | QueueFigures():
            return record_response_to_json(message)
        case Hello() | Pong() | Failure():
            return connection_response_to_json(message)
        case Chunk() | RecordBatch() | Deliveries():
            raise TypeError(f"{type(message).__name__} is no text frame")


_SERVER_READERS: Mapping[str, Callable[[Fields], ServerMessage | Failure]] = {
    **UPLOAD_RESPONSE_READERS,
    **DOWNLOAD_RESPONSE_READERS,
    **STATUS_RESPONSE_READERS,
    **CONTEXT_RESPONSE_READERS,
    **RECORD_RESPONSE_READERS,
    "error": read_failure,
}


def decode_from_server(text: str) -> FromServer:
    """Return the message of a server's text frame.

    Raises:
        Malformed: The frame is no message of a server.
    """
    as_encoded = _CHECKPOINT_TEXT.fullmatch(text)
    if as_encoded is not None:
        number, size, newlines, head = as_encoded.groups()
        return FromServer(int(number), Checkpoint(int(size), int(newlines), bytes.fromhex(head)))
    name, fields = _parse(text)
    try:
        unnumbered = read_connection_response(name, fields)
    except TailraceError as error:
        raise Malformed(None, error) from None
    if unnumbered is not None:
        return FromServer(None, unnumbered)
    request = _request(fields)
    reader = _SERVER_READERS.get(name)
    if reader is None:
        raise Malformed(request, Unsupported(f"unknown message type {name[:40]!a}"))
    try:
        return FromServer(request, reader(fields))
    except InvalidArgument as error:
        # Not one of who asked.
        problem = ProtocolError(f"the server sent a value that cannot be accepted: {error}")
        raise Malformed(request, problem) from None
    except TailraceError as error:
        raise Malformed(request, error) from None


# Text frames

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _to_json(name: str, request: int | None, fields: Mapping[str, object]) -> str:
    values: dict[str, object] = {"type": name}
    if request is not None:
        values["request"] = request
    values.update((key, value) for key, value in fields.items() if value is not None)
    return _ENCODER.encode(values)


def _clean(text: str) -> str:
    """Return a text without halves of surrogate pairs (names of files in error texts), which have no UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _window_text(request: int, window: Window) -> str:
    """Return what the encoder would: this is sent for every few chunks, and shares their time."""
    return f'{{"type":"window","request":{request},"until":{window.until}}}'


def _checkpoint_text(request: int, checkpoint: Checkpoint) -> str:
    """Return what the encoder would, for the other message that is sent for every few chunks."""
    size, newlines, head = checkpoint.size, checkpoint.newlines, checkpoint.head.hex()
    return f'{{"type":"checkpoint","request":{request},"size":{size},"newlines":{newlines},"head":"{head}"}}'


_CHECKPOINT_TEXT = re.compile(
    r'\{"type":"checkpoint","request":([1-9][0-9]{0,8}),"size":(0|[1-9][0-9]{0,14}),"newlines":(0|[1-9][0-9]{0,14}),'
    rf'"head":"([0-9a-f]{{{2 * HEAD_SIZE}}})"\}}'
)
"""What :func:`_checkpoint_text` makes, one for each line of a live upload, read without the steps that JSON takes.

Nothing is in it that the fields would refuse: the numbers have fewer digits than the largest ones. All that is written
otherwise is read as JSON.
"""


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


__all__ = [
    "MAX_CLOSE_REASON",
    "MAX_REQUEST",
    "MAX_TEXT_SIZE",
    "PATH",
    "PROTOCOL_VERSION",
    "REQUESTS",
    "SUBPROTOCOL",
    "Authenticate",
    "Cancel",
    "Failure",
    "FromClient",
    "FromServer",
    "Hello",
    "Malformed",
    "Ping",
    "Pong",
    "close_reason",
    "decode_from_client",
    "decode_from_server",
    "encode_from_client",
    "encode_from_server",
    "text_size",
]
