"""The messages about records to protobuf and back.

Records go through the generated classes in whole lists, and deliveries as one list for each of their fields: a message
object for every record would take longer than all the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tailrace_common_api import (
    DIGEST_SIZE,
    MAX_KEY_SIZE,
    Argument,
    BulkResult,
    InvalidArgument,
    ProtocolError,
    QueuedRecord,
    QueueFigures,
    RecordBatch,
    RecordLimits,
    Reporting,
    Settlement,
    Verdict,
)
from tailrace_impl_common.messages import ClientMessage, ServerMessage, Window
from tailrace_impl_common.record_messages import (
    MESSAGE_RECORDS,
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
    Settle,
    Settled,
    Work,
    WorkOpened,
)
from tailrace_impl_grpc._codec_values import MAX_DATA_MESSAGE, clean_text, parse, sized, unknown, value_from_proto
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb

MAX_REASON = 1024
"""Longest reason of a rejection, in characters."""
_SMALLEST_INT, _LARGEST_INT = -(2**63), 2**63 - 1
_BYTES_OF_CHARACTER = 4

_REPORTINGS = {Reporting.FIRST: pb.REPORTING_FIRST, Reporting.ALL: pb.REPORTING_ALL}
_REPORTINGS_BACK: dict[int, Reporting] = {
    pb.REPORTING_UNSPECIFIED: Reporting.FIRST,
    **{value: reporting for reporting, value in _REPORTINGS.items()},
}
_VERDICTS = {
    Verdict.ACKNOWLEDGE: pb.VERDICT_ACKNOWLEDGE,
    Verdict.REQUEUE: pb.VERDICT_REQUEUE,
    Verdict.DEAD_LETTER: pb.VERDICT_DEAD_LETTER,
    Verdict.EXTEND: pb.VERDICT_EXTEND,
}
_VERDICTS_BACK: dict[int, Verdict] = {value: verdict for verdict, value in _VERDICTS.items()}


# Bulks


def encode_bulk_request(message: ClientMessage) -> bytes:
    match message:
        case RecordBatch():
            return _sized_data(pb.BulkRequest(records=_batch_to_proto(message)).SerializeToString())
        case OpenBulk():
            request = pb.BulkRequest(
                open=pb.OpenBulk(
                    collection=message.collection,
                    content_type=message.content_type,
                    idempotency_key=message.idempotency_key,
                    reporting=_REPORTINGS[message.reporting],
                    priority=message.priority,
                )
            )
        case CommitBulk(records, digest):
            request = pb.BulkRequest(commit=pb.CommitBulk(records=records, digest=digest))
        case _:
            raise TypeError(f"{type(message).__name__} is no message of a bulk")
    return sized(request.SerializeToString())


def decode_bulk_request(data: bytes) -> ClientMessage:
    message = parse(pb.BulkRequest, _sized_data(data))
    kind = message.WhichOneof("message")
    if kind == "records":
        return _batch_from_proto(message.records)
    sized(data)
    match kind:
        case "open":
            opening = message.open
            reporting = _REPORTINGS_BACK.get(opening.reporting)
            if reporting is None:
                raise InvalidArgument(field="reporting", problem=f"{opening.reporting} is unknown")
            return OpenBulk(
                collection=opening.collection,
                content_type=opening.content_type if opening.HasField("content_type") else None,
                idempotency_key=opening.idempotency_key if opening.HasField("idempotency_key") else None,
                reporting=reporting,
                priority=opening.priority,
            )
        case "commit":
            return CommitBulk(message.commit.records, _checked_digest(message.commit.digest))
        case _:
            raise unknown(message)


def encode_bulk_response(message: ServerMessage) -> bytes:
    match message:
        case BulkOpened():
            response = pb.BulkResponse(
                opened=pb.BulkOpened(
                    id=message.id,
                    content_type=message.content_type,
                    limits=_limits_to_proto(message.limits),
                    until=message.until,
                    result=None if message.result is None else _result_to_proto(message.result),
                )
            )
        case Window(until):
            response = pb.BulkResponse(window=pb.Window(until=until))
        case BulkCommitted(result):
            response = pb.BulkResponse(committed=pb.BulkCommitted(result=_result_to_proto(result)))
        case _:
            raise TypeError(f"{type(message).__name__} is no message to a bulk")
    return sized(response.SerializeToString())


def decode_bulk_response(data: bytes) -> ServerMessage:
    message = parse(pb.BulkResponse, sized(data))
    match message.WhichOneof("message"):
        case "opened":
            opened = message.opened
            return BulkOpened(
                id=opened.id,
                content_type=opened.content_type,
                limits=_limits_from_proto(opened.limits),
                until=opened.until,
                result=_result_from_proto(opened.result) if opened.HasField("result") else None,
            )
        case "window":
            return Window(message.window.until)
        case "committed":
            return BulkCommitted(_result_from_proto(message.committed.result))
        case _:
            raise unknown(message)


# Queries


def encode_query_request(message: ClientMessage) -> bytes:
    match message:
        case Window(until):
            request = pb.QueryRequest(window=pb.Window(until=until))
        case Query():
            opening = pb.OpenQuery(source=message.source, window=message.window)
            for name, value in message.arguments.items():
                _set_argument(opening.arguments[_encodable(name, name)], name, value)
            request = pb.QueryRequest(open=opening)
        case _:
            raise TypeError(f"{type(message).__name__} is no message of a query")
    return sized(request.SerializeToString())


def decode_query_request(data: bytes) -> ClientMessage:
    message = parse(pb.QueryRequest, sized(data))
    match message.WhichOneof("message"):
        case "window":
            return Window(message.window.until)
        case "open":
            opening = message.open
            arguments = {name: _finite(name, value_from_proto(value)) for name, value in opening.arguments.items()}
            return Query(source=opening.source, arguments=arguments, window=opening.window)
        case _:
            raise unknown(message)


def encode_query_response(message: ServerMessage) -> bytes:
    match message:
        case RecordBatch():
            return _sized_data(pb.QueryResponse(records=_batch_to_proto(message)).SerializeToString())
        case QueryStarted(content_type):
            response = pb.QueryResponse(started=pb.QueryStarted(content_type=content_type))
        case QueryEnd(records, digest):
            response = pb.QueryResponse(end=pb.QueryEnd(records=records, digest=digest))
        case _:
            raise TypeError(f"{type(message).__name__} is no message to a query")
    return sized(response.SerializeToString())


def decode_query_response(data: bytes) -> ServerMessage:
    message = parse(pb.QueryResponse, _sized_data(data))
    kind = message.WhichOneof("message")
    if kind == "records":
        return _batch_from_proto(message.records)
    sized(data)
    match kind:
        case "started":
            return QueryStarted(message.started.content_type)
        case "end":
            return QueryEnd(message.end.records, _checked_digest(message.end.digest))
        case _:
            raise unknown(message)


# Work


def encode_work_request(message: ClientMessage) -> bytes:
    match message:
        case Settle(settlements):
            request = pb.WorkRequest(settle=pb.Settle(settlements=list(map(_settlement_to_proto, settlements))))
        case Credit():
            credit = pb.Credit(sequence=message.sequence, records=message.records, bytes=message.bytes)
            request = pb.WorkRequest(credit=credit)
        case Work():
            opening = pb.OpenWork(queue=message.queue, records=message.records, bytes=message.bytes)
            request = pb.WorkRequest(open=opening)
        case Leave():
            request = pb.WorkRequest(leave=pb.Leave())
        case _:
            raise TypeError(f"{type(message).__name__} is no message of a consumer")
    return sized(request.SerializeToString())


def decode_work_request(data: bytes) -> ClientMessage:
    message = parse(pb.WorkRequest, sized(data))
    match message.WhichOneof("message"):
        case "settle":
            settlements = message.settle.settlements
            if not 1 <= len(settlements) <= MESSAGE_RECORDS:
                raise ProtocolError(f"{len(settlements)} answers in one message; it holds 1 to {MESSAGE_RECORDS}")
            return Settle(tuple(map(_settlement_from_proto, settlements)))
        case "credit":
            credit = message.credit
            return Credit(sequence=credit.sequence, records=credit.records, bytes=credit.bytes)
        case "open":
            return Work(queue=message.open.queue, records=message.open.records, bytes=message.open.bytes)
        case "leave":
            return Leave()
        case _:
            raise unknown(message)


def encode_work_response(message: ServerMessage) -> bytes:
    match message:
        case Deliveries(records):
            return _sized_data(pb.WorkResponse(deliveries=_deliveries_to_proto(records)).SerializeToString())
        case Settled(counted, failed):
            response = pb.WorkResponse(settled=pb.Settled(counted=counted, failed=clean_text(failed)))
        case CreditSet(sequence, outstanding, stalled):
            credit_set = pb.CreditSet(sequence=sequence, outstanding=outstanding, stalled=stalled)
            response = pb.WorkResponse(credit_set=credit_set)
        case WorkOpened():
            opened = pb.WorkOpened(consumer=message.consumer, content_type=message.content_type, lease=message.lease)
            response = pb.WorkResponse(opened=opened)
        case Left():
            response = pb.WorkResponse(left=pb.Left())
        case _:
            raise TypeError(f"{type(message).__name__} is no message to a consumer")
    return sized(response.SerializeToString())


def decode_work_response(data: bytes) -> ServerMessage:
    message = parse(pb.WorkResponse, _sized_data(data))
    kind = message.WhichOneof("message")
    if kind == "deliveries":
        return _deliveries_from_proto(message.deliveries)
    sized(data)
    match kind:
        case "settled":
            return Settled(tuple(message.settled.counted), message.settled.failed)
        case "credit_set":
            state = message.credit_set
            return CreditSet(state.sequence, state.outstanding, state.stalled)
        case "opened":
            opened = message.opened
            return WorkOpened(consumer=opened.consumer, content_type=opened.content_type, lease=opened.lease)
        case "left":
            return Left()
        case _:
            raise unknown(message)


def encode_get_queue_request(message: ClientMessage) -> bytes:
    match message:
        case GetQueue(queue=queue):
            return sized(pb.GetQueueRequest(queue=queue).SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} does not ask for a queue")


def decode_get_queue_request(data: bytes) -> ClientMessage:
    return GetQueue(queue=parse(pb.GetQueueRequest, sized(data)).queue)


def encode_queue_figures(message: ServerMessage) -> bytes:
    match message:
        case QueueFigures():
            figures = pb.QueueFigures(
                queue=message.queue,
                ready=message.ready,
                delayed=message.delayed,
                in_flight=message.in_flight,
                dead=message.dead,
                consumers=message.consumers,
                stalled=message.stalled,
            )
            return sized(figures.SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} does not describe a queue")


def decode_queue_figures(data: bytes) -> ServerMessage:
    figures = parse(pb.QueueFigures, sized(data))
    return QueueFigures(
        queue=figures.queue,
        ready=figures.ready,
        delayed=figures.delayed,
        in_flight=figures.in_flight,
        dead=figures.dead,
        consumers=figures.consumers,
        stalled=figures.stalled,
    )


# Values


def _sized_data(data: bytes) -> bytes:
    return sized(data, MAX_DATA_MESSAGE)


def _batch_to_proto(batch: RecordBatch) -> pb.RecordBatch:
    data, keys = batch
    return pb.RecordBatch(data=data, keys=[key or "" for key in keys]) if keys else pb.RecordBatch(data=data)


def _batch_from_proto(message: pb.RecordBatch) -> RecordBatch:
    """Decode records.

    Raises:
        ProtocolError: There are none or too many, or their keys are not theirs.
    """
    count = _checked_count(len(message.data))
    keys = message.keys
    # A slice of a repeated field is a list, made at once.
    return RecordBatch(message.data[:], _checked_keys(keys[:], count) if keys else ())


def _deliveries_to_proto(records: Sequence[QueuedRecord]) -> pb.Deliveries:
    ids, attempts, priorities, data, keys = zip(*records, strict=True)
    has_keys = any(keys)
    return pb.Deliveries(
        ids=ids,
        attempts=attempts,
        priorities=priorities,
        data=data,
        keys=[key or "" for key in keys] if has_keys else (),
    )


def _deliveries_from_proto(message: pb.Deliveries) -> Deliveries:
    """Decode deliveries.

    Raises:
        ProtocolError: There are none or too many, or the fields do not belong together.
    """
    count = _checked_count(len(message.data))
    if not len(message.ids) == len(message.attempts) == len(message.priorities) == count:
        raise ProtocolError(
            f"{count} deliveries with {len(message.ids)} ids, {len(message.attempts)} attempts and "
            f"{len(message.priorities)} priorities"
        )
    attempts = message.attempts[:]
    if not all(attempts):
        raise ProtocolError("a delivery with attempt 0")
    keys = (_checked_keys(message.keys[:], count) if message.keys else None) or (None,) * count
    return Deliveries(tuple(map(QueuedRecord, message.ids[:], attempts, message.priorities[:], message.data[:], keys)))


def _checked_count(count: int) -> int:
    if not 1 <= count <= MESSAGE_RECORDS:
        raise ProtocolError(f"{count} records in one message; it holds 1 to {MESSAGE_RECORDS}")
    return count


def _checked_keys(keys: Sequence[str], count: int) -> Sequence[str | None]:
    """Return the keys of ``count`` records; none when nobody has one.

    Raises:
        ProtocolError: There are more or fewer, or one is too long.
    """
    if len(keys) != count:
        raise ProtocolError(f"{count} records with {len(keys)} keys")
    longest = max(map(len, keys))
    if not longest:
        return ()
    if longest * _BYTES_OF_CHARACTER > MAX_KEY_SIZE:
        size = max(len(key.encode()) for key in keys)
        if size > MAX_KEY_SIZE:
            raise ProtocolError(f"a key of {size} bytes; at most {MAX_KEY_SIZE} are allowed")
    return [key or None for key in keys]


def _checked_digest(digest: bytes) -> bytes:
    """Return ``digest`` if it has the length of one.

    Raises:
        ProtocolError: It has not.
    """
    if len(digest) != DIGEST_SIZE:
        raise ProtocolError(f"digest of {len(digest)} bytes; a digest has {DIGEST_SIZE}")
    return digest


def _settlement_to_proto(settlement: Settlement) -> pb.Settlement:
    id_, attempt, verdict, seconds, reason = settlement
    # It may be the text of an error, with parts of the names of files.
    text = clean_text(reason) if reason else ""
    return pb.Settlement(id=id_, attempt=attempt, verdict=_VERDICTS[verdict], seconds=seconds, reason=text)


def _settlement_from_proto(message: pb.Settlement) -> Settlement:
    """Decode the answer to a delivery.

    Raises:
        InvalidArgument: It has no meaning.
    """
    verdict, seconds, reason = _VERDICTS_BACK.get(message.verdict), message.seconds, message.reason
    if verdict is None:
        raise InvalidArgument(field="verdict", problem=f"{message.verdict} is unknown")
    if not message.attempt:
        raise InvalidArgument(field="attempt", problem="is 0; attempts begin at 1")
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise InvalidArgument(field="seconds", problem=f"{seconds:g} is no time")
    if len(reason) > MAX_REASON:
        raise InvalidArgument(field="reason", problem=f"{len(reason)} characters; at most {MAX_REASON} are allowed")
    return Settlement(message.id, message.attempt, verdict, seconds, reason)


def _set_argument(target: pb.Value, name: str, value: Argument) -> None:
    """Encode an argument of a query.

    Raises:
        InvalidArgument: It has no place on the wire.
    """
    # A bool is an int to Python.
    if isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, int):
        if not _SMALLEST_INT <= value <= _LARGEST_INT:
            raise InvalidArgument(field=name, problem="is an integer of more than 64 bits")
        target.int_value = value
    elif isinstance(value, float):
        _finite(name, value)
        target.double_value = value
    elif isinstance(value, str):
        target.string_value = _encodable(name, value)
    else:
        target.SetInParent()


def _encodable(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(field=name, problem="holds half of a surrogate pair") from None
    return text


def _finite(name: str, value: Argument) -> Argument:
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidArgument(field=name, problem=f"{value} is no finite number")
    return value


def _limits_to_proto(limits: RecordLimits) -> pb.RecordLimits:
    return pb.RecordLimits(
        record_bytes=limits.record_bytes,
        bulk_records=limits.bulk_records,
        bulk_bytes=limits.bulk_bytes,
        bulk_idle=limits.bulk_idle,
        window=limits.window,
    )


def _limits_from_proto(message: pb.RecordLimits) -> RecordLimits:
    return RecordLimits(
        record_bytes=message.record_bytes,
        bulk_records=message.bulk_records,
        bulk_bytes=message.bulk_bytes,
        bulk_idle=message.bulk_idle,
        window=message.window,
    )


def _result_to_proto(result: BulkResult) -> pb.BulkResult:
    return pb.BulkResult(
        id=result.id,
        collection=result.collection,
        records=result.records,
        size=result.size,
        digest=result.digest,
        committed_at=result.committed_at,
        repeated=result.repeated,
    )


def _result_from_proto(message: pb.BulkResult) -> BulkResult:
    return BulkResult(
        id=message.id,
        collection=message.collection,
        records=message.records,
        size=message.size,
        digest=_checked_digest(message.digest),
        committed_at=message.committed_at,
        repeated=message.repeated,
    )
