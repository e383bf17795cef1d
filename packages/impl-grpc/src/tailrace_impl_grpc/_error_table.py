"""Errors as gRPC carries them.

The status code is for gRPC's own machinery and for people; the error itself travels whole in the trailing metadata, so
that nothing is ever read out of a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import grpc

from tailrace_common_api import TailraceError, error_from_wire
from tailrace_impl_grpc._codec import decode_error, encode_error
from tailrace_impl_grpc._codec_values import clean_text

ERROR_KEY = "tailrace-error-bin"
"""Name of the trailing metadata entry that holds the error."""

ERROR_TABLE: dict[str, grpc.StatusCode] = {
    "already_terminal": grpc.StatusCode.FAILED_PRECONDITION,
    "bulk_conflict": grpc.StatusCode.ALREADY_EXISTS,
    "bulk_refused": grpc.StatusCode.INVALID_ARGUMENT,
    "configuration": grpc.StatusCode.INVALID_ARGUMENT,
    "connection_lost": grpc.StatusCode.UNAVAILABLE,
    "context_closed": grpc.StatusCode.FAILED_PRECONDITION,
    "context_not_found": grpc.StatusCode.NOT_FOUND,
    "damaged_block": grpc.StatusCode.DATA_LOSS,
    "data_lost": grpc.StatusCode.DATA_LOSS,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "deleted": grpc.StatusCode.NOT_FOUND,
    "digest_mismatch": grpc.StatusCode.DATA_LOSS,
    "encoding": grpc.StatusCode.INVALID_ARGUMENT,
    "fenced": grpc.StatusCode.ABORTED,
    "going_away": grpc.StatusCode.UNAVAILABLE,
    "idempotency_conflict": grpc.StatusCode.ALREADY_EXISTS,
    "integrity": grpc.StatusCode.DATA_LOSS,
    "internal": grpc.StatusCode.INTERNAL,
    "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
    "invalid_reference": grpc.StatusCode.INVALID_ARGUMENT,
    "lease_lost": grpc.StatusCode.ABORTED,
    "length_mismatch": grpc.StatusCode.INVALID_ARGUMENT,
    "line_access_disabled": grpc.StatusCode.FAILED_PRECONDITION,
    "line_range_not_satisfiable": grpc.StatusCode.OUT_OF_RANGE,
    "message_too_large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "overloaded": grpc.StatusCode.UNAVAILABLE,
    "permission_denied": grpc.StatusCode.PERMISSION_DENIED,
    "protocol": grpc.StatusCode.INVALID_ARGUMENT,
    "query_failed": grpc.StatusCode.INTERNAL,
    "quota_exceeded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "range_not_satisfiable": grpc.StatusCode.OUT_OF_RANGE,
    "record_end_not_found": grpc.StatusCode.NOT_FOUND,
    "resource_failed": grpc.StatusCode.FAILED_PRECONDITION,
    "source_changed": grpc.StatusCode.FAILED_PRECONDITION,
    "staging_lost": grpc.StatusCode.ABORTED,
    "storage_failure": grpc.StatusCode.INTERNAL,
    "storage_full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "token_rejected": grpc.StatusCode.PERMISSION_DENIED,
    "transport_missing": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "unsupported": grpc.StatusCode.UNIMPLEMENTED,
    "upload_aborted": grpc.StatusCode.ABORTED,
    "wrong_offset": grpc.StatusCode.FAILED_PRECONDITION,
}
"""Status of every error code."""

# What a status means when no error came with it: then it was not made by Tailrace, but by gRPC itself or by a proxy.
_CODE_OF_STATUS: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.CANCELLED: "connection_lost",
    # What gRPC says when bytes were changed on the way. A defect of a server comes with the server's error.
    grpc.StatusCode.UNKNOWN: "protocol",
    grpc.StatusCode.INVALID_ARGUMENT: "protocol",
    grpc.StatusCode.DEADLINE_EXCEEDED: "connection_lost",
    grpc.StatusCode.NOT_FOUND: "unsupported",
    grpc.StatusCode.ALREADY_EXISTS: "protocol",
    grpc.StatusCode.PERMISSION_DENIED: "permission_denied",
    grpc.StatusCode.UNAUTHENTICATED: "unauthenticated",
    # gRPC uses it for a message above its own limit, too; repeating the call would not help.
    grpc.StatusCode.RESOURCE_EXHAUSTED: "protocol",
    grpc.StatusCode.FAILED_PRECONDITION: "protocol",
    grpc.StatusCode.ABORTED: "connection_lost",
    grpc.StatusCode.UNIMPLEMENTED: "unsupported",
    grpc.StatusCode.INTERNAL: "protocol",
    grpc.StatusCode.UNAVAILABLE: "connection_lost",
    grpc.StatusCode.OUT_OF_RANGE: "protocol",
    grpc.StatusCode.DATA_LOSS: "protocol",
}

# How gRPC says that there is no connection: the reason is at the end, behind the address, once or several times.
_UNREACHED = re.compile(
    r"^(?:failed to connect to all addresses; last error: (?:\w+: )?(?:\S+: )?(?:Failed to connect to remote host: )?"
    r"(?P<refused>.+)|errors resolving .*: (?P<unknown>[^:\]]+)\]*)\Z"
)

# gRPC escapes a status message to up to three times its length, and the whole of the metadata has a limit of 8 KiB.
_MAX_STATUS_MESSAGE = 512


def error_to_status(error: TailraceError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Return status code, status message and trailing metadata of an error."""
    status = ERROR_TABLE.get(error.code, grpc.StatusCode.UNKNOWN)
    return status, clean_text(error.message, _MAX_STATUS_MESSAGE), ((ERROR_KEY, encode_error(error)),)


def error_from_status(
    status: grpc.StatusCode, message: str, metadata: Iterable[tuple[str, str | bytes]], *, address: str
) -> TailraceError:
    """Rebuild the error with which a call ended.

    Args:
        status: Status code, not OK.
        message: Status message.
        metadata: Trailing metadata.
        address: Whom the call went to, for the text of errors that are not the server's.
    """
    error = sent_error(metadata)
    if error is not None:
        return error
    code = _CODE_OF_STATUS.get(status, "internal")
    if code == "connection_lost" and (unreached := _UNREACHED.search(message)):
        return error_from_wire(code, f"{address} cannot be reached: {unreached['refused'] or unreached['unknown']}", {})
    whom = f"the connection to {address} failed" if code == "connection_lost" else address
    return error_from_wire(code, f"{whom}: {message or status.name}", {})


def sent_error(metadata: Iterable[tuple[str, str | bytes]]) -> TailraceError | None:
    """Return the error in the trailing metadata of a call, if one was sent."""
    for key, value in metadata:
        if key == ERROR_KEY and isinstance(value, bytes):
            return decode_error(value)
    return None
