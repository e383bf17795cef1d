"""The messages about records to JSON and back; records themselves travel in binary frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from tailrace_common_api import (
    DIGEST_SIZE,
    Argument,
    BulkResult,
    InvalidArgument,
    ProtocolError,
    RecordLimits,
    Reporting,
    Settlement,
    Verdict,
)
from tailrace_impl_common.messages import ClientMessage, ServerMessage
from tailrace_impl_common.record_messages import (
    MESSAGE_RECORDS,
    BulkCommitted,
    BulkOpened,
    CommitBulk,
    Credit,
    CreditSet,
    GetQueue,
    Leave,
    Left,
    OpenBulk,
    Query,
    QueryEnd,
    QueryStarted,
    QueueFigures,
    Settle,
    Settled,
    Work,
    WorkOpened,
)
from tailrace_impl_websocket._fields import Fields

MAX_REASON = 1024
"""Longest reason of a rejection, in characters."""
_MAX_INTEGER = 2**63 - 1
_WordT = TypeVar("_WordT", Reporting, Verdict)

RecordControlRequest = OpenBulk | CommitBulk | Query | Work | Credit | Settle | Leave | GetQueue
"""What clients say of records in text frames."""
RecordControlResponse = (
    BulkOpened | BulkCommitted | QueryStarted | QueryEnd | WorkOpened | CreditSet | Settled | Left | QueueFigures
)
"""What servers say of records in text frames."""


# Messages of the client


def record_request_to_json(message: RecordControlRequest) -> tuple[str, dict[str, object]]:
    """Return the name and the fields of a message.

    Raises:
        InvalidArgument: A value cannot be said in JSON.
    """
    match message:
        case OpenBulk():
            return "open_bulk", {
                "collection": message.collection,
                "content_type": message.content_type,
                "idempotency_key": message.idempotency_key,
                "reporting": message.reporting.value,
                "priority": message.priority,
            }
        case CommitBulk():
            return "commit_bulk", {"records": message.records, "digest": message.digest.hex()}
        case Query():
            arguments = {name: _sayable(name, value) for name, value in message.arguments.items()}
            return "query", {"source": message.source, "arguments": arguments, "window": message.window}
        case Work():
            return "work", {"queue": message.queue, "records": message.records, "bytes": message.bytes}
        case Credit():
            return "credit", {"sequence": message.sequence, "records": message.records, "bytes": message.bytes}
        case Settle():
            return "settle", {"settlements": [_settlement_to_json(settlement) for settlement in message.settlements]}
        case Leave():
            return "leave", {}
        case GetQueue():
            return "get_queue", {"queue": message.queue}


def _sayable(name: str, value: Argument) -> Argument:
    """Return the argument of a query if JSON and the other side can hold it.

    Raises:
        InvalidArgument: It cannot.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(field=name, problem="holds half of a surrogate pair") from None
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidArgument(field=name, problem=f"{value} is no finite number")
    elif isinstance(value, int) and not -_MAX_INTEGER - 1 <= value <= _MAX_INTEGER:
        raise InvalidArgument(field=name, problem="is an integer of more than 64 bits")
    return value


def _settlement_to_json(settlement: Settlement) -> dict[str, object]:
    id_, attempt, verdict, seconds, reason = settlement
    if not math.isfinite(seconds):
        raise InvalidArgument(field="seconds", problem=f"{seconds} is no finite number")
    fields: dict[str, object] = {"id": id_, "attempt": attempt, "verdict": verdict.value}
    if seconds:
        fields["seconds"] = seconds
    if reason:
        fields["reason"] = reason
    return fields


def _read_settlement(fields: Fields) -> Settlement:
    seconds, reason = fields.optional_number("seconds") or 0.0, fields.optional_text("reason") or ""
    if seconds < 0:
        raise InvalidArgument(field="seconds", problem=f"{seconds:g} is negative")
    if len(reason) > MAX_REASON:
        raise InvalidArgument(field="reason", problem=f"{len(reason)} characters; at most {MAX_REASON} are allowed")
    verdict = _read_word(Verdict, "verdict", fields.text("verdict"))
    return Settlement(fields.count("id"), fields.count("attempt", minimum=1), verdict, seconds, reason)


def _read_settle(fields: Fields) -> Settle:
    settlements = fields.all_nested("settlements")
    if not 1 <= len(settlements) <= MESSAGE_RECORDS:
        raise ProtocolError(f"{len(settlements)} answers in one message; it holds 1 to {MESSAGE_RECORDS}")
    return Settle(tuple(map(_read_settlement, settlements)))


def _read_word(kind: type[_WordT], name: str, text: str) -> _WordT:
    try:
        return kind(text)
    except ValueError:
        raise InvalidArgument(field=name, problem=f"{text[:40]!a} is unknown") from None


RECORD_REQUEST_READERS: Mapping[str, Callable[[Fields], ClientMessage]] = {
    "open_bulk": lambda fields: OpenBulk(
        collection=fields.text("collection"),
        content_type=fields.optional_text("content_type"),
        idempotency_key=fields.optional_text("idempotency_key"),
        reporting=_read_word(Reporting, "reporting", fields.optional_text("reporting") or Reporting.FIRST.value),
        priority=fields.optional_integer("priority") or 0,
    ),
    "commit_bulk": lambda fields: CommitBulk(fields.count("records"), fields.digest("digest", DIGEST_SIZE)),
    "query": lambda fields: Query(
        source=fields.text("source"),
        arguments=fields.argument_mapping("arguments"),
        window=fields.optional_count("window") or 0,
    ),
    "work": lambda fields: Work(
        queue=fields.text("queue"), records=fields.count("records"), bytes=fields.count("bytes")
    ),
    "credit": lambda fields: Credit(
        sequence=fields.count("sequence"), records=fields.count("records"), bytes=fields.count("bytes")
    ),
    "settle": _read_settle,
    "leave": lambda _: Leave(),
    "get_queue": lambda fields: GetQueue(queue=fields.text("queue")),
}


# Messages of the server


def record_response_to_json(message: RecordControlResponse) -> tuple[str, dict[str, object]]:
    match message:
        case BulkOpened():
            return "bulk_opened", {
                "id": message.id,
                "content_type": message.content_type,
                "limits": _limits_to_json(message.limits),
                "until": message.until,
                "result": None if message.result is None else _result_to_json(message.result),
            }
        case BulkCommitted():
            return "bulk_committed", {"result": _result_to_json(message.result)}
        case QueryStarted():
            return "query_started", {"content_type": message.content_type}
        case QueryEnd():
            return "query_end", {"records": message.records, "digest": message.digest.hex()}
        case WorkOpened():
            return "work_opened", {
                "consumer": message.consumer,
                "content_type": message.content_type,
                "lease": message.lease,
            }
        case CreditSet():
            return "credit_set", {
                "sequence": message.sequence,
                "outstanding": message.outstanding,
                "stalled": message.stalled,
            }
        case Settled():
            return "settled", {"counted": list(message.counted), "failed": message.failed or None}
        case Left():
            return "left", {}
        case QueueFigures():
            return "queue_figures", {
                "queue": message.queue,
                "ready": message.ready,
                "delayed": message.delayed,
                "in_flight": message.in_flight,
                "dead": message.dead,
                "consumers": message.consumers,
                "stalled": message.stalled,
            }


def _limits_to_json(limits: RecordLimits) -> dict[str, object]:
    return {
        "record_bytes": limits.record_bytes,
        "bulk_records": limits.bulk_records,
        "bulk_bytes": limits.bulk_bytes,
        "bulk_idle": limits.bulk_idle,
        "window": limits.window,
    }


def _read_limits(fields: Fields) -> RecordLimits:
    return RecordLimits(
        record_bytes=fields.count("record_bytes"),
        bulk_records=fields.count("bulk_records"),
        bulk_bytes=fields.count("bulk_bytes"),
        bulk_idle=fields.number("bulk_idle"),
        window=fields.count("window"),
    )


def _result_to_json(result: BulkResult) -> dict[str, object]:
    return {
        "id": result.id,
        "collection": result.collection,
        "records": result.records,
        "size": result.size,
        "digest": result.digest.hex(),
        "committed_at": result.committed_at,
        "repeated": result.repeated,
    }


def _read_result(fields: Fields) -> BulkResult:
    return BulkResult(
        id=fields.text("id"),
        collection=fields.text("collection"),
        records=fields.count("records"),
        size=fields.count("size"),
        digest=fields.digest("digest", DIGEST_SIZE),
        committed_at=fields.number("committed_at"),
        repeated=fields.flag("repeated"),
    )


def _read_bulk_opened(fields: Fields) -> BulkOpened:
    result = fields.optional_nested("result")
    return BulkOpened(
        id=fields.text("id"),
        content_type=fields.text("content_type"),
        limits=_read_limits(fields.nested("limits")),
        until=fields.count("until"),
        result=None if result is None else _read_result(result),
    )


RECORD_RESPONSE_READERS: Mapping[str, Callable[[Fields], ServerMessage]] = {
    "bulk_opened": _read_bulk_opened,
    "bulk_committed": lambda fields: BulkCommitted(_read_result(fields.nested("result"))),
    "query_started": lambda fields: QueryStarted(fields.text("content_type")),
    "query_end": lambda fields: QueryEnd(fields.count("records"), fields.digest("digest", DIGEST_SIZE)),
    "work_opened": lambda fields: WorkOpened(
        consumer=fields.text("consumer"), content_type=fields.text("content_type"), lease=fields.number("lease")
    ),
    "credit_set": lambda fields: CreditSet(
        fields.count("sequence"), fields.count("outstanding"), fields.flag("stalled")
    ),
    "settled": lambda fields: Settled(fields.flags("counted"), fields.optional_text("failed") or ""),
    "left": lambda _: Left(),
    "queue_figures": lambda fields: QueueFigures(
        queue=fields.text("queue"),
        ready=fields.count("ready"),
        delayed=fields.count("delayed"),
        in_flight=fields.count("in_flight"),
        dead=fields.count("dead"),
        consumers=fields.count("consumers"),
        stalled=fields.count("stalled"),
    ),
}
