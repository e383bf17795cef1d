"""Messages to protobuf and back: nothing above this module knows protobuf.

Data messages are framed by hand (:mod:`tailrace_impl_grpc._chunk_frame`); all others go through the generated classes.
gRPC itself is given bytes and gives bytes: a message that cannot be decoded is then an error of one request, with a
text and a code, and not a failure inside gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tailrace_common_api import InvalidArgument, MessageTooLarge, ProtocolError
from tailrace_impl_common import Buffer
from tailrace_impl_common.messages import (
    UPLOAD_REQUESTS,
    Chunk,
    ClientMessage,
    CloseContext,
    CreateContext,
    Delete,
    Follow,
    GetContext,
    GetHeads,
    GetStatus,
    List,
    Locate,
    OpenUpload,
    Read,
    ReadLines,
    ReopenUpload,
    Request,
    ServerMessage,
    Watch,
    WatchContext,
)
from tailrace_impl_common.record_messages import GetQueue, OpenBulk, Query, Work
from tailrace_impl_grpc._chunk_frame import chunk_parts
from tailrace_impl_grpc._codec_contexts import (
    decode_close_context_request,
    decode_context,
    decode_context_event,
    decode_create_context_request,
    decode_get_context_request,
    decode_watch_context_request,
    encode_close_context_request,
    encode_context,
    encode_context_event,
    encode_create_context_request,
    encode_get_context_request,
    encode_watch_context_request,
)
from tailrace_impl_grpc._codec_download import (
    decode_download_response,
    decode_follow_request,
    decode_read_lines_request,
    decode_read_request,
    encode_download_response,
    encode_follow_request,
    encode_read_lines_request,
    encode_read_request,
)
from tailrace_impl_grpc._codec_records import (
    decode_bulk_request,
    decode_bulk_response,
    decode_get_queue_request,
    decode_query_request,
    decode_query_response,
    decode_queue_figures,
    decode_work_request,
    decode_work_response,
    encode_bulk_request,
    encode_bulk_response,
    encode_get_queue_request,
    encode_query_request,
    encode_query_response,
    encode_queue_figures,
    encode_work_request,
    encode_work_response,
)
from tailrace_impl_grpc._codec_status import (
    decode_delete_request,
    decode_delete_response,
    decode_get_status_request,
    decode_heads_request,
    decode_heads_response,
    decode_list_request,
    decode_list_response,
    decode_locate_request,
    decode_locate_response,
    decode_status,
    decode_watch_request,
    encode_delete_request,
    encode_delete_response,
    encode_get_status_request,
    encode_heads_request,
    encode_heads_response,
    encode_list_request,
    encode_list_response,
    encode_locate_request,
    encode_locate_response,
    encode_status,
    encode_watch_request,
)
from tailrace_impl_grpc._codec_upload import (
    decode_upload_request,
    decode_upload_response,
    encode_upload_request,
    encode_upload_response,
)
from tailrace_impl_grpc._codec_values import MAX_CONTROL_MESSAGE, MAX_DATA_MESSAGE, decode_error, encode_error

DecodedT = TypeVar("DecodedT")


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a service, and how its messages look on the wire.

    Both directions refuse messages above the limits with ``MessageTooLarge``. Decoding raises ``ProtocolError`` for
    what is malformed and ``Unsupported`` for what is unknown.
    """

    service: str
    """Full name of the service."""
    name: str
    """Name of the method in it."""
    encode_request: Callable[[ClientMessage], bytes]
    """Raises ``InvalidArgument`` for values that have no place on the wire."""
    decode_request: Callable[[bytes], ClientMessage]
    """Raises ``InvalidArgument`` for values that cannot be accepted."""
    encode_response: Callable[[ServerMessage], bytes]
    decode_response: Callable[[bytes], ServerMessage | list[ServerMessage]]
    """Returns several messages, in order, where one on the wire holds them: only those of byte streams can."""

    @property
    def path(self) -> str:
        """Path of the method, as in HTTP/2."""
        return f"/{self.service}/{self.name}"


def _from_caller(encode: Callable[[ClientMessage], bytes]) -> Callable[[ClientMessage], bytes]:
    """Blame the caller for values that cannot be encoded."""

    def encode_request(message: ClientMessage) -> bytes:
        try:
            return encode(message)
        except (TypeError, ValueError) as exc:
            if isinstance(exc, InvalidArgument):
                raise
            raise InvalidArgument(field=type(message).__name__, problem=str(exc)) from None

    return encode_request


def _from_server(decode: Callable[[bytes], DecodedT]) -> Callable[[bytes], DecodedT]:
    """Blame the server for values that cannot be accepted."""

    def decode_response(data: bytes) -> DecodedT:
        try:
            return decode(data)
        except InvalidArgument as exc:
            raise ProtocolError(f"the server sent a value that cannot be accepted: {exc}") from None

    return decode_response


def encode_chunk(chunk: Chunk) -> tuple[bytes, Buffer]:
    """Return the message that has a chunk, to a server or to a reader, in two pieces: nothing of its data is copied.

    Raises:
        InvalidArgument: A number has no place on the wire.
        MessageTooLarge: It is too large.
    """
    try:
        fields, data = chunk_parts(chunk)
    except ValueError as exc:
        raise InvalidArgument(field="Chunk", problem=str(exc)) from None
    size = len(fields) + len(data)
    if size > MAX_DATA_MESSAGE:
        raise MessageTooLarge(size=size, maximum=MAX_DATA_MESSAGE)
    return fields, data


UPLOADS, RESOURCES, CONTEXTS = "tailrace.v1.Uploads", "tailrace.v1.Resources", "tailrace.v1.Contexts"
RECORDS = "tailrace.v1.Records"
SERVICES = (UPLOADS, RESOURCES, CONTEXTS, RECORDS)
"""Full names of the services."""


def _method(
    service: str,
    name: str,
    encode_request: Callable[[ClientMessage], bytes],
    decode_request: Callable[[bytes], ClientMessage],
    encode_response: Callable[[ServerMessage], bytes],
    decode_response: Callable[[bytes], ServerMessage | list[ServerMessage]],
) -> Method:
    return Method(
        service, name, _from_caller(encode_request), decode_request, encode_response, _from_server(decode_response)
    )


UPLOAD = _method(
    UPLOADS,
    "Upload",
    encode_upload_request,
    decode_upload_request,
    encode_upload_response,
    decode_upload_response,
)
READ = _method(
    RESOURCES,
    "Read",
    encode_read_request,
    decode_read_request,
    encode_download_response,
    decode_download_response,
)
FOLLOW = _method(
    RESOURCES,
    "Follow",
    encode_follow_request,
    decode_follow_request,
    encode_download_response,
    decode_download_response,
)
READ_LINES = _method(
    RESOURCES,
    "ReadLines",
    encode_read_lines_request,
    decode_read_lines_request,
    encode_download_response,
    decode_download_response,
)
WATCH = _method(RESOURCES, "Watch", encode_watch_request, decode_watch_request, encode_status, decode_status)
GET_STATUS = _method(
    RESOURCES, "GetStatus", encode_get_status_request, decode_get_status_request, encode_status, decode_status
)
HEADS = _method(
    RESOURCES, "Heads", encode_heads_request, decode_heads_request, encode_heads_response, decode_heads_response
)
LOCATE = _method(
    RESOURCES,
    "Locate",
    encode_locate_request,
    decode_locate_request,
    encode_locate_response,
    decode_locate_response,
)
LIST = _method(RESOURCES, "List", encode_list_request, decode_list_request, encode_list_response, decode_list_response)
DELETE = _method(
    RESOURCES,
    "Delete",
    encode_delete_request,
    decode_delete_request,
    encode_delete_response,
    decode_delete_response,
)
CREATE_CONTEXT = _method(
    CONTEXTS,
    "Create",
    encode_create_context_request,
    decode_create_context_request,
    encode_context,
    decode_context,
)
GET_CONTEXT = _method(
    CONTEXTS, "Get", encode_get_context_request, decode_get_context_request, encode_context, decode_context
)
CLOSE_CONTEXT = _method(
    CONTEXTS, "Close", encode_close_context_request, decode_close_context_request, encode_context, decode_context
)
WATCH_CONTEXT = _method(
    CONTEXTS,
    "Watch",
    encode_watch_context_request,
    decode_watch_context_request,
    encode_context_event,
    decode_context_event,
)
BULK = _method(RECORDS, "Bulk", encode_bulk_request, decode_bulk_request, encode_bulk_response, decode_bulk_response)
QUERY = _method(
    RECORDS, "Query", encode_query_request, decode_query_request, encode_query_response, decode_query_response
)
WORK = _method(RECORDS, "Work", encode_work_request, decode_work_request, encode_work_response, decode_work_response)
GET_QUEUE = _method(
    RECORDS, "GetQueue", encode_get_queue_request, decode_get_queue_request, encode_queue_figures, decode_queue_figures
)

CONVERSATIONS: Mapping[Method, tuple[type[Request], ...]] = {
    UPLOAD: UPLOAD_REQUESTS,
    READ: (Read,),
    FOLLOW: (Follow,),
    READ_LINES: (ReadLines,),
    BULK: (OpenBulk,),
    QUERY: (Query,),
    WORK: (Work,),
}
"""Methods in which both sides stream, with the requests that begin each."""
DOWNLOADS = (READ, FOLLOW, READ_LINES)
"""Those of them in which the server's last message, and nothing behind it, is an ``End``."""
WATCHES = (WATCH, WATCH_CONTEXT)
"""Methods with one request, in which only the server streams."""
ANSWERS = (GET_STATUS, HEADS, LOCATE, LIST, DELETE, CREATE_CONTEXT, GET_CONTEXT, CLOSE_CONTEXT, GET_QUEUE)
"""Methods with one request and one answer."""

_METHODS: dict[type[Request], Method] = {
    OpenUpload: UPLOAD,
    ReopenUpload: UPLOAD,
    Read: READ,
    Follow: FOLLOW,
    ReadLines: READ_LINES,
    Watch: WATCH,
    GetStatus: GET_STATUS,
    GetHeads: HEADS,
    Locate: LOCATE,
    List: LIST,
    Delete: DELETE,
    CreateContext: CREATE_CONTEXT,
    GetContext: GET_CONTEXT,
    CloseContext: CLOSE_CONTEXT,
    WatchContext: WATCH_CONTEXT,
    OpenBulk: BULK,
    Query: QUERY,
    Work: WORK,
    GetQueue: GET_QUEUE,
}


def method_of(request: Request) -> Method:
    """Return the method that a request calls."""
    return _METHODS[type(request)]


__all__ = [
    "ANSWERS",
    "CONVERSATIONS",
    "DOWNLOADS",
    "MAX_CONTROL_MESSAGE",
    "MAX_DATA_MESSAGE",
    "SERVICES",
    "UPLOAD",
    "WATCHES",
    "Method",
    "decode_error",
    "encode_error",
    "method_of",
]
