"""Errors to WebSocket close codes and HTTP statuses.

The error itself travels as (code, message, details), in a message on a connection and in the body of an HTTP answer.
What stands here is for those who see no more than the number: proxies, browsers, curl.
"""

from __future__ import annotations

from typing import NamedTuple

from tailrace_common_api import TailraceError


class WireStatus(NamedTuple):
    """How an error shows outside of its message."""

    close_code: int
    """Close code of a connection that ends with the error (RFC 6455, section 7.4.1, and the IANA registry)."""
    http_status: int
    """Status of an HTTP answer (RFC 9110, section 15)."""


NORMAL = 1000
GOING_AWAY = 1001
PROTOCOL_ERROR = 1002
POLICY_VIOLATION = 1008
MESSAGE_TOO_BIG = 1009
INTERNAL_ERROR = 1011
TRY_AGAIN_LATER = 1013

ERROR_TABLE: dict[str, WireStatus] = {
    "already_terminal": WireStatus(POLICY_VIOLATION, 409),
    "bulk_conflict": WireStatus(POLICY_VIOLATION, 409),
    "bulk_refused": WireStatus(POLICY_VIOLATION, 422),
    "configuration": WireStatus(POLICY_VIOLATION, 400),
    "connection_lost": WireStatus(INTERNAL_ERROR, 502),
    "context_closed": WireStatus(POLICY_VIOLATION, 409),
    "context_not_found": WireStatus(POLICY_VIOLATION, 404),
    "damaged_block": WireStatus(INTERNAL_ERROR, 500),
    "data_lost": WireStatus(INTERNAL_ERROR, 500),
    "deadline_exceeded": WireStatus(INTERNAL_ERROR, 504),
    "deleted": WireStatus(POLICY_VIOLATION, 410),
    "digest_mismatch": WireStatus(POLICY_VIOLATION, 422),
    "encoding": WireStatus(POLICY_VIOLATION, 400),
    "fenced": WireStatus(POLICY_VIOLATION, 409),
    "going_away": WireStatus(GOING_AWAY, 503),
    "idempotency_conflict": WireStatus(POLICY_VIOLATION, 409),
    "integrity": WireStatus(POLICY_VIOLATION, 422),
    "internal": WireStatus(INTERNAL_ERROR, 500),
    "invalid_argument": WireStatus(POLICY_VIOLATION, 400),
    "invalid_reference": WireStatus(POLICY_VIOLATION, 404),
    "lease_lost": WireStatus(POLICY_VIOLATION, 409),
    "length_mismatch": WireStatus(POLICY_VIOLATION, 422),
    "line_access_disabled": WireStatus(POLICY_VIOLATION, 409),
    "line_range_not_satisfiable": WireStatus(POLICY_VIOLATION, 416),
    "message_too_large": WireStatus(MESSAGE_TOO_BIG, 413),
    "not_found": WireStatus(POLICY_VIOLATION, 404),
    "overloaded": WireStatus(TRY_AGAIN_LATER, 503),
    "permission_denied": WireStatus(POLICY_VIOLATION, 403),
    "protocol": WireStatus(PROTOCOL_ERROR, 400),
    "query_failed": WireStatus(INTERNAL_ERROR, 500),
    "quota_exceeded": WireStatus(POLICY_VIOLATION, 507),
    "range_not_satisfiable": WireStatus(POLICY_VIOLATION, 416),
    "record_end_not_found": WireStatus(POLICY_VIOLATION, 404),
    "resource_failed": WireStatus(POLICY_VIOLATION, 409),
    "source_changed": WireStatus(POLICY_VIOLATION, 409),
    "staging_lost": WireStatus(INTERNAL_ERROR, 500),
    "storage_failure": WireStatus(INTERNAL_ERROR, 500),
    "storage_full": WireStatus(TRY_AGAIN_LATER, 507),
    "token_rejected": WireStatus(POLICY_VIOLATION, 403),
    "transport_missing": WireStatus(POLICY_VIOLATION, 400),
    "unauthenticated": WireStatus(POLICY_VIOLATION, 401),
    "unsupported": WireStatus(PROTOCOL_ERROR, 400),
    "upload_aborted": WireStatus(POLICY_VIOLATION, 409),
    "wrong_offset": WireStatus(POLICY_VIOLATION, 409),
}

_UNKNOWN = ERROR_TABLE["internal"]


def wire_status(error: TailraceError) -> WireStatus:
    """Return how ``error`` shows; an error of a code that is not in the table shows as a defect."""
    return ERROR_TABLE.get(error.code, _UNKNOWN)
