"""Values that occur in several messages, to JSON and back."""

from __future__ import annotations

from tailrace_common_api import (
    HEAD_SIZE,
    FromOffset,
    InvalidArgument,
    LastBytes,
    LastLines,
    Limits,
    Metadata,
    ProtocolError,
    ResourceState,
    Start,
    Status,
    TailraceError,
    Visibility,
    error_from_wire,
)
from tailrace_impl_websocket._fields import Fields

_SMALLEST_INT, _LARGEST_INT = -(2**63), 2**63 - 1


def place(value: int) -> int:
    """Return an offset, line or count of a request as the nearest number that fits on the wire.

    What does not fit is far outside every resource, and so is the number that is sent: the server says so.
    """
    return min(max(value, _SMALLEST_INT), _LARGEST_INT)


def optional_place(value: int | None) -> int | None:
    """Do the same as :func:`place` for what may be missing."""
    return None if value is None else place(value)


def metadata_to_json(metadata: Metadata) -> dict[str, object]:
    return {
        "name": metadata.name,
        "content_type": metadata.content_type,
        "lines": metadata.lines,
        "labels": dict(metadata.labels),
        "context": metadata.context,
    }


def read_metadata(fields: Fields) -> Metadata:
    return Metadata(
        name=fields.text("name"),
        content_type=fields.optional_text("content_type") or "application/octet-stream",
        lines=fields.flag("lines"),
        labels=fields.text_mapping("labels"),
        context=fields.optional_text("context"),
    )


def status_to_json(status: Status) -> dict[str, object]:
    return {
        "reference": status.reference,
        "id": status.id,
        "version": status.version,
        "state": status.state.value,
        "size": status.size,
        "lines": status.lines,
        "head": status.head.hex(),
        "reason": status.reason,
        "alternatives": list(status.alternatives),
        "metadata": metadata_to_json(status.metadata),
        "visibility": status.visibility.value,
        "created_at": status.created_at,
    }


def read_state(text: str) -> ResourceState:
    try:
        return ResourceState(text)
    except ValueError:
        raise InvalidArgument(field="state", problem=f"{text[:40]!a} is unknown") from None


def read_visibility(text: str) -> Visibility:
    try:
        return Visibility(text)
    except ValueError:
        raise InvalidArgument(field="visibility", problem=f"{text[:40]!a} is unknown") from None


def read_status(fields: Fields) -> Status:
    return Status(
        reference=fields.text("reference"),
        id=fields.text("id"),
        version=fields.count("version"),
        state=read_state(fields.text("state")),
        size=fields.count("size"),
        lines=fields.optional_count("lines"),
        head=fields.digest("head", HEAD_SIZE),
        reason=fields.optional_text("reason"),
        alternatives=fields.texts("alternatives"),
        metadata=read_metadata(fields.nested("metadata")),
        visibility=read_visibility(fields.text("visibility")),
        created_at=fields.number("created_at"),
    )


def limits_to_json(limits: Limits) -> dict[str, object]:
    return {
        "chunk_size": limits.chunk_size,
        "upload_window": limits.upload_window,
        "upload_grace": limits.upload_grace,
        "max_download_window": limits.max_download_window,
        "max_resource_size": limits.max_resource_size,
        "max_page_size": limits.max_page_size,
        "max_heads": limits.max_heads,
        "max_context_bytes": limits.max_context_bytes,
        "max_context_resources": limits.max_context_resources,
        "max_storage_bytes": limits.max_storage_bytes,
        "max_uploads": limits.max_uploads,
        "max_contexts": limits.max_contexts,
        "max_requests": limits.max_requests,
        "context_required": limits.context_required,
    }


def read_limits(fields: Fields) -> Limits:
    return Limits(
        chunk_size=fields.count("chunk_size", minimum=1),
        upload_window=fields.count("upload_window", minimum=1),
        upload_grace=fields.number("upload_grace"),
        max_download_window=fields.count("max_download_window", minimum=1),
        max_resource_size=fields.count("max_resource_size"),
        max_page_size=fields.count("max_page_size", minimum=1),
        max_heads=fields.count("max_heads", minimum=1),
        max_context_bytes=fields.count("max_context_bytes"),
        max_context_resources=fields.count("max_context_resources"),
        max_storage_bytes=fields.count("max_storage_bytes"),
        max_uploads=fields.count("max_uploads"),
        max_contexts=fields.count("max_contexts"),
        max_requests=fields.count("max_requests", minimum=1),
        context_required=fields.flag("context_required"),
    )


def error_to_json(error: TailraceError) -> dict[str, object]:
    """Return what names an error without loss: code, message and details."""
    return {"code": error.code, "message": error.message, "details": error.details()}


def read_error(fields: Fields) -> TailraceError:
    """Rebuild an error from what :func:`error_to_json` gave.

    Raises:
        ProtocolError: The fields are not those of an error.
    """
    return error_from_wire(fields.text("code"), fields.text("message"), fields.scalar_mapping("details"))


_START_FIELDS: dict[type[FromOffset | LastBytes | LastLines], str] = {
    FromOffset: "from_offset",
    LastBytes: "last_bytes",
    LastLines: "last_lines",
}


def start_to_json(start: Start) -> dict[str, object]:
    value = start.offset if isinstance(start, FromOffset) else start.count
    return {_START_FIELDS[type(start)]: place(value)}


def read_start(fields: Fields) -> Start:
    given = [(make, name) for make, name in _START_FIELDS.items() if fields.has(name)]
    if not given:
        return FromOffset(0)
    if len(given) > 1:
        raise ProtocolError("more than one of 'from_offset', 'last_bytes' and 'last_lines'")
    make, name = given[0]
    return make(fields.integer(name))
