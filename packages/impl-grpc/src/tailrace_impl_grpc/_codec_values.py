"""The values inside messages to protobuf and back: statuses, metadata, limits, filters, errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import accumulate
from operator import itemgetter
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from tailrace_common_api import (
    HEAD_SIZE,
    MAX_OFFSET,
    MEBIBYTE,
    BulkRefused,
    Checkpoint,
    ContextEventKind,
    ContextState,
    InternalError,
    InvalidArgument,
    Limits,
    ListFilter,
    MessageTooLarge,
    Metadata,
    ProtocolError,
    ResourceState,
    Status,
    TailraceError,
    Unsupported,
    Visibility,
    WireValue,
    error_from_wire,
)
from tailrace_impl_common import HASH_SIZE, MAX_CHUNK_SIZE
from tailrace_impl_common.messages import Chunk
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb

MessageT = TypeVar("MessageT", bound=Message)

MAX_DATA_MESSAGE = MAX_CHUNK_SIZE + 1024
"""Largest message with a chunk, in bytes: the largest chunk and what frames it. Below gRPC's own default of 4 MiB."""
MAX_CONTROL_MESSAGE = MEBIBYTE
"""Largest message without a chunk, in bytes."""

# gRPC lets an answer's metadata have 8 KiB by default: three texts of this length, and the frame around them, fit.
_MAX_ERROR_TEXT = 1024
# In their place, for the error with a list.
_MAX_PROBLEMS, _MAX_PROBLEM_TEXT = 3072, 160
_SMALLEST_INT, _LARGEST_INT = -(2**63), 2**63 - 1

_STATES = {
    ResourceState.INITIATED: pb.RESOURCE_STATE_INITIATED,
    ResourceState.IN_PROGRESS: pb.RESOURCE_STATE_IN_PROGRESS,
    ResourceState.COMPLETED: pb.RESOURCE_STATE_COMPLETED,
    ResourceState.FAILED: pb.RESOURCE_STATE_FAILED,
}
_STATES_BACK: dict[int, ResourceState] = {value: state for state, value in _STATES.items()}
_VISIBILITIES = {Visibility.LIVE: pb.VISIBILITY_LIVE, Visibility.ATOMIC: pb.VISIBILITY_ATOMIC}
_VISIBILITIES_BACK: dict[int, Visibility] = {value: visibility for visibility, value in _VISIBILITIES.items()}

_CONTEXT_STATES = {
    ContextState.OPEN: pb.CONTEXT_STATE_OPEN,
    ContextState.CLOSED: pb.CONTEXT_STATE_CLOSED,
}
_CONTEXT_STATES_BACK: dict[int, ContextState] = {value: state for state, value in _CONTEXT_STATES.items()}
_EVENT_KINDS = {
    ContextEventKind.CREATED: pb.CONTEXT_EVENT_KIND_CREATED,
    ContextEventKind.STATUS_CHANGED: pb.CONTEXT_EVENT_KIND_STATUS_CHANGED,
    ContextEventKind.REFUSED: pb.CONTEXT_EVENT_KIND_REFUSED,
    ContextEventKind.DELETED: pb.CONTEXT_EVENT_KIND_DELETED,
    ContextEventKind.CLOSED: pb.CONTEXT_EVENT_KIND_CLOSED,
}
_EVENT_KINDS_BACK: dict[int, ContextEventKind] = {value: kind for kind, value in _EVENT_KINDS.items()}


def parse(cls: type[MessageT], data: bytes) -> MessageT:
    """Parse a message of a known type.

    Raises:
        ProtocolError: It is malformed.
    """
    try:
        return cls.FromString(data if type(data) is bytes else bytes(data))
    except DecodeError:
        raise ProtocolError(f"malformed {cls.DESCRIPTOR.name} of {len(data)} bytes") from None


def sized(data: bytes, maximum: int = MAX_CONTROL_MESSAGE) -> bytes:
    """Return ``data`` if it is of at most ``maximum`` bytes.

    Raises:
        MessageTooLarge: It is larger.
    """
    if len(data) > maximum:
        raise MessageTooLarge(size=len(data), maximum=maximum)
    return data


def join_responses(responses: Iterable[bytes]) -> bytes:
    """Return encoded messages of one conversation, each of another kind and without a ``oneof``, as one message."""
    # A protobuf message is its fields one behind the other. Each of these is one field, and begins with its number.
    fields = sorted(responses, key=itemgetter(0))
    return b"".join(fields)


def unknown(message: Message) -> Unsupported:
    """Return the error for a message that holds nothing known here."""
    return Unsupported(f"{message.DESCRIPTOR.name} of a kind that is unknown here")


def clean_text(text: str, limit: int | None = None) -> str:
    """Return ``text`` as valid Unicode of at most ``limit`` bytes of UTF-8, cut on a character."""
    encoded = text.encode("utf-8", "replace")
    if limit is None or len(encoded) <= limit:
        return encoded.decode()
    return encoded[:limit].decode("utf-8", "ignore")


def check_head(head: bytes) -> bytes:
    """Return ``head`` if it has the length of one.

    Raises:
        ProtocolError: It has not.
    """
    if len(head) != HEAD_SIZE:
        raise ProtocolError(f"head of {len(head)} bytes; a head has {HEAD_SIZE}")
    return head


def check_count(name: str, value: int) -> int:
    """Return ``value`` if it is no larger than any offset.

    Raises:
        ProtocolError: It is.
    """
    if value > MAX_OFFSET:
        raise ProtocolError(f"field {name!r} is above {MAX_OFFSET}")
    return value


def place(value: int) -> int:
    """Return an offset, line or count of a request as the nearest number that fits on the wire.

    What does not fit is far outside every resource, and so is the number that is sent: the server says so.
    """
    return min(max(value, _SMALLEST_INT), _LARGEST_INT)


def optional_place(value: int | None) -> int | None:
    """Do the same as :func:`place` for what may be missing."""
    return None if value is None else place(value)


def chunk_from_proto(message: pb.Chunk) -> Chunk:
    """Decode a chunk.

    Raises:
        ProtocolError: A hash or the head in it has the wrong length.
    """
    checkpoint = checkpoint_from_proto(message.checkpoint) if message.HasField("checkpoint") else None
    return checked_chunk(Chunk(message.offset, message.data, message.hash, message.previous, checkpoint))


def checked_chunk(chunk: Chunk) -> Chunk:
    """Return ``chunk`` if its hashes and head have the lengths that they must have.

    Raises:
        ProtocolError: They have not.
    """
    if len(chunk.hash) != HASH_SIZE:
        raise ProtocolError(f"chunk with a hash of {len(chunk.hash)} bytes; a hash has {HASH_SIZE}")
    if chunk.previous and len(chunk.previous) != HASH_SIZE:
        raise ProtocolError(f"chunk with a previous hash of {len(chunk.previous)} bytes; a hash has {HASH_SIZE}")
    if chunk.checkpoint is not None:
        check_head(chunk.checkpoint.head)
    return chunk


def checkpoint_from_proto(message: pb.Checkpoint) -> Checkpoint:
    """Decode a checkpoint.

    Raises:
        ProtocolError: Its head has the wrong length.
    """
    return Checkpoint(message.size, message.newlines, check_head(message.head))


def metadata_to_proto(metadata: Metadata) -> pb.Metadata:
    """Encode metadata."""
    return pb.Metadata(
        name=metadata.name,
        content_type=metadata.content_type,
        lines=metadata.lines,
        labels=dict(metadata.labels),
        context=metadata.context,
    )


def metadata_from_proto(message: pb.Metadata) -> Metadata:
    """Decode metadata.

    Raises:
        InvalidArgument: It breaks a rule of :class:`Metadata`.
    """
    return Metadata(
        name=message.name,
        content_type=message.content_type or "application/octet-stream",
        lines=message.lines,
        labels=dict(message.labels),
        context=message.context if message.HasField("context") else None,
    )


def visibility_to_proto(visibility: Visibility) -> pb.Visibility:
    """Encode a visibility."""
    return _VISIBILITIES[visibility]


def visibility_from_proto(value: int) -> Visibility:
    """Decode a visibility; an unspecified one is live.

    Raises:
        InvalidArgument: It is unknown.
    """
    if value == pb.VISIBILITY_UNSPECIFIED:
        return Visibility.LIVE
    visibility = _VISIBILITIES_BACK.get(value)
    if visibility is None:
        raise InvalidArgument(field="visibility", problem=f"{value} is unknown")
    return visibility


def state_to_proto(state: ResourceState) -> pb.ResourceState:
    """Encode a state."""
    return _STATES[state]


def state_from_proto(value: int) -> ResourceState:
    """Decode a state.

    Raises:
        InvalidArgument: It is unknown or unspecified.
    """
    state = _STATES_BACK.get(value)
    if state is None:
        raise InvalidArgument(field="state", problem=f"{value} is unknown")
    return state


def context_state_to_proto(state: ContextState) -> pb.ContextState:
    """Encode the state of a context."""
    return _CONTEXT_STATES[state]


def context_state_from_proto(value: int) -> ContextState:
    """Decode the state of a context.

    Raises:
        InvalidArgument: It is unknown or unspecified.
    """
    state = _CONTEXT_STATES_BACK.get(value)
    if state is None:
        raise InvalidArgument(field="state", problem=f"{value} is unknown")
    return state


def event_kind_to_proto(kind: ContextEventKind) -> pb.ContextEventKind:
    """Encode the kind of an event."""
    return _EVENT_KINDS[kind]


def event_kind_from_proto(value: int) -> ContextEventKind:
    """Decode the kind of an event.

    Raises:
        InvalidArgument: It is unknown or unspecified.
    """
    kind = _EVENT_KINDS_BACK.get(value)
    if kind is None:
        raise InvalidArgument(field="kind", problem=f"{value} is unknown")
    return kind


def status_to_proto(status: Status) -> pb.Status:
    """Encode a status."""
    return pb.Status(
        reference=status.reference,
        id=status.id,
        version=status.version,
        state=state_to_proto(status.state),
        size=status.size,
        lines=status.lines,
        head=status.head,
        reason=None if status.reason is None else clean_text(status.reason),
        alternatives=status.alternatives,
        metadata=metadata_to_proto(status.metadata),
        visibility=visibility_to_proto(status.visibility),
        created_at=status.created_at,
    )


def status_from_proto(message: pb.Status) -> Status:
    """Decode a status.

    Raises:
        InvalidArgument, ProtocolError: It is malformed.
    """
    return Status(
        reference=message.reference,
        id=message.id,
        version=message.version,
        state=state_from_proto(message.state),
        size=message.size,
        lines=message.lines if message.HasField("lines") else None,
        head=check_head(message.head),
        reason=message.reason if message.HasField("reason") else None,
        alternatives=tuple(message.alternatives),
        metadata=metadata_from_proto(message.metadata),
        visibility=visibility_from_proto(message.visibility),
        created_at=message.created_at,
    )


def limits_to_proto(limits: Limits) -> pb.Limits:
    """Encode limits."""
    return pb.Limits(
        chunk_size=limits.chunk_size,
        upload_window=limits.upload_window,
        upload_grace=limits.upload_grace,
        max_download_window=limits.max_download_window,
        max_resource_size=limits.max_resource_size,
        max_page_size=limits.max_page_size,
        max_heads=limits.max_heads,
        max_context_bytes=limits.max_context_bytes,
        max_context_resources=limits.max_context_resources,
        max_storage_bytes=limits.max_storage_bytes,
        max_uploads=limits.max_uploads,
        max_contexts=limits.max_contexts,
        max_requests=limits.max_requests,
        context_required=limits.context_required,
    )


def limits_from_proto(message: pb.Limits) -> Limits:
    """Decode limits."""
    return Limits(
        chunk_size=message.chunk_size,
        upload_window=message.upload_window,
        upload_grace=message.upload_grace,
        max_download_window=message.max_download_window,
        max_resource_size=message.max_resource_size,
        max_page_size=message.max_page_size,
        max_heads=message.max_heads,
        max_context_bytes=message.max_context_bytes,
        max_context_resources=message.max_context_resources,
        max_storage_bytes=message.max_storage_bytes,
        max_uploads=message.max_uploads,
        max_contexts=message.max_contexts,
        max_requests=message.max_requests,
        context_required=message.context_required,
    )


def list_request_to_proto(filter: ListFilter, limit: int, page_token: str | None) -> pb.ListRequest:
    """Encode what a listing selects."""
    return pb.ListRequest(
        labels=dict(filter.labels),
        context=filter.context,
        state=pb.RESOURCE_STATE_UNSPECIFIED if filter.state is None else state_to_proto(filter.state),
        created_from=filter.created_from,
        created_before=filter.created_before,
        limit=place(limit),
        page_token=page_token,
    )


def list_filter_from_proto(message: pb.ListRequest) -> ListFilter:
    """Decode what a listing selects.

    Raises:
        InvalidArgument: The state is unknown.
    """
    return ListFilter(
        labels=dict(message.labels),
        context=message.context if message.HasField("context") else None,
        state=None if message.state == pb.RESOURCE_STATE_UNSPECIFIED else state_from_proto(message.state),
        created_from=message.created_from if message.HasField("created_from") else None,
        created_before=message.created_before if message.HasField("created_before") else None,
    )


def encode_error(error: TailraceError) -> bytes:
    """Encode an error for the trailing metadata of a call; long texts in it are cut."""
    message = pb.Error(code=error.code, message=clean_text(error.message, _MAX_ERROR_TEXT))
    for name, value in error.details().items():
        if isinstance(error, BulkRefused) and name == "problems":
            message.details[name].string_value = _cut_problems(error.problems)
        else:
            _set_value(message.details[name], value)
    return message.SerializeToString()


def decode_error(data: bytes) -> TailraceError:
    """Rebuild an error from the trailing metadata of a call; a malformed one gives an ``InternalError``."""
    try:
        message = parse(pb.Error, data)
    except ProtocolError as exc:
        return InternalError(f"the call failed and its error cannot be read: {exc}")
    details: Mapping[str, WireValue] = {name: value_from_proto(value) for name, value in message.details.items()}
    return error_from_wire(message.code, message.message, details)


def _cut_problems(problems: str) -> str:
    """Return the problems of a bulk as JSON that fits into an error: long texts are cut, and then the list is."""
    clean = clean_text(problems)
    if len(clean.encode()) <= _MAX_PROBLEMS:
        return clean
    listed = [[index, kind, _cut(field), _cut(problem)] for index, kind, field, problem in json.loads(problems)]
    encoded = [json.dumps(problem, ensure_ascii=True, separators=(",", ":")) for problem in listed]
    # Each with a comma behind it, or a bracket; another one stands in front of all.
    sizes = accumulate((len(text) + 1 for text in encoded), initial=1)
    fitting = sum(size <= _MAX_PROBLEMS for size in sizes) - 1
    return f"[{','.join(encoded[:fitting])}]"


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= _MAX_PROBLEM_TEXT else text[: _MAX_PROBLEM_TEXT - 1] + "…"


def _set_value(target: pb.Value, value: WireValue) -> None:
    # A bool is an int to Python.
    if isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, int):
        target.int_value = place(value)
    elif isinstance(value, float):
        target.double_value = value
    elif isinstance(value, str):
        target.string_value = clean_text(value, _MAX_ERROR_TEXT)
    else:
        target.SetInParent()


def value_from_proto(message: pb.Value) -> WireValue:
    """Decode the attribute of an error, or the argument of a query."""
    match message.WhichOneof("kind"):
        case "string_value":
            return message.string_value
        case "int_value":
            return message.int_value
        case "double_value":
            return message.double_value
        case "bool_value":
            return message.bool_value
        case _:
            return None
