"""Messages about records on the wire: nothing is lost, and what is wrong is refused with a typed error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from impl_grpc_messages import windows
from impl_grpc_record_messages import (
    batches,
    bulk_messages,
    deliveries,
    messages_to_bulk,
    messages_to_consumer,
    messages_to_query,
    queries,
    queue_figures,
    queue_requests,
    work_messages,
)

from tailrace_common_api import (
    MAX_RECORD_SIZE,
    Argument,
    BulkResult,
    InvalidArgument,
    MessageTooLarge,
    ProtocolError,
    QueuedRecord,
    QueueFigures,
    RecordBatch,
    RecordLimits,
    Reporting,
    Settlement,
    Verdict,
)
from tailrace_impl_common import record_messages as r
from tailrace_impl_common.messages import Window
from tailrace_impl_common.record_messages import MESSAGE_BYTES, MESSAGE_RECORDS
from tailrace_impl_grpc import _codec
from tailrace_impl_grpc._codec import BULK, GET_QUEUE, MAX_CONTROL_MESSAGE, MAX_DATA_MESSAGE, QUERY, WORK, Method
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb

KIBIBYTE = 1024
GRPC_DEFAULT_MAXIMUM = 4 * KIBIBYTE * KIBIBYTE
"""What gRPC lets nobody send who was not told otherwise."""


def cases(*cases: tuple[Method, st.SearchStrategy[Any]]) -> st.SearchStrategy[tuple[Method, Any]]:
    return st.one_of([st.tuples(st.just(method), strategy) for method, strategy in cases])


@given(
    cases((BULK, bulk_messages), (QUERY, queries | windows), (WORK, work_messages), (GET_QUEUE, queue_requests)),
)
def test_requests_about_records_survive_the_wire(case: tuple[Method, Any]) -> None:
    method, message = case
    again = method.decode_request(method.encode_request(message))
    assert again == message
    if isinstance(message, r.OpenBulk | r.Query | r.Work | r.GetQueue):
        assert _codec.method_of(message) is method


@given(
    cases(
        (BULK, messages_to_bulk), (QUERY, messages_to_query), (WORK, messages_to_consumer), (GET_QUEUE, queue_figures)
    )
)
def test_responses_about_records_survive_the_wire(case: tuple[Method, Any]) -> None:
    method, message = case
    assert method.decode_response(method.encode_response(message)) == message


@given(batches)
def test_records_are_the_same_bytes_to_and_from_a_server(batch: RecordBatch) -> None:
    expected = pb.RecordBatch(data=batch.data, keys=[key or "" for key in batch.keys])
    assert pb.BulkRequest.FromString(BULK.encode_request(batch)).records == expected
    assert pb.QueryResponse.FromString(QUERY.encode_response(batch)).records == expected
    assert BULK.encode_request(batch) == QUERY.encode_response(batch)


@given(deliveries)
def test_deliveries_are_what_the_generated_classes_write(message: r.Deliveries) -> None:
    found = pb.WorkResponse.FromString(WORK.encode_response(message)).deliveries
    assert [found.ids, found.attempts, found.priorities, found.data] == [
        [getattr(record, name) for record in message.records] for name in ("id", "attempt", "priority", "data")
    ]
    keys = [record.key or "" for record in message.records]
    assert list(found.keys) == (keys if any(keys) else [])


def test_arguments_keep_their_types() -> None:
    arguments: dict[str, Argument] = {"a": True, "b": 1, "c": 1.0, "d": "1", "e": None, "f": -(2**63), "g": "x" * 5000}
    again = QUERY.decode_request(QUERY.encode_request(r.Query(source="s", arguments=arguments)))
    assert isinstance(again, r.Query)
    assert again.arguments == arguments
    assert {name: type(value) for name, value in again.arguments.items()} == {
        name: type(value) for name, value in arguments.items()
    }


LIMITS = RecordLimits(record_bytes=1 << 20, bulk_records=10, bulk_bytes=1 << 30, bulk_idle=60.0, window=1 << 22)
RESULT = BulkResult(id="b1", collection="c", records=2, size=5, digest=bytes(range(16)), committed_at=1.5)

# What other implementations write, byte by byte: it must never change.
FIXED: list[tuple[Callable[[Any], bytes], Callable[[bytes], Any], object, str]] = [
    (
        BULK.encode_request,
        BULK.decode_request,
        r.OpenBulk(collection="c", content_type="t", idempotency_key="k", reporting=Reporting.ALL, priority=-1),
        "0a0d 0a0163 120174 1a016b 2002 2801",
    ),
    (BULK.encode_request, BULK.decode_request, RecordBatch([b"{}", b""]), "1206 0a027b7d 0a00"),
    (
        BULK.encode_request,
        BULK.decode_request,
        RecordBatch([b"{}", b"1"], [None, "k"]),
        "120c 0a027b7d 0a0131 1200 12016b",
    ),
    (BULK.encode_request, BULK.decode_request, r.CommitBulk(2, bytes(16)), f"1a14 0802 1210{'00' * 16}"),
    (
        BULK.encode_response,
        BULK.decode_response,
        r.BulkOpened(id="b", content_type="t", limits=LIMITS, until=300),
        "0a25 0a0162 120174 1a1a 08808040 100a 188080808004 210000000000004e40 2880808002 20ac02",
    ),
    (BULK.encode_response, BULK.decode_response, Window(300), "1203 08ac02"),
    (
        BULK.encode_response,
        BULK.decode_response,
        r.BulkCommitted(RESULT),
        "1a28 0a26 0a026231 120163 1802 2005 2a10000102030405060708090a0b0c0d0e0f 31000000000000f83f",
    ),
    (QUERY.encode_request, QUERY.decode_request, r.Query(source="s", window=5), "0a05 0a0173 1805"),
    (
        QUERY.encode_request,
        QUERY.decode_request,
        r.Query(source="s", arguments={"n": 2}),
        "0a0c 0a0173 1207 0a016e 12021002",
    ),
    (QUERY.encode_response, QUERY.decode_response, r.QueryStarted("t"), "0a03 0a0174"),
    (QUERY.encode_response, QUERY.decode_response, RecordBatch([b"{}"]), "1204 0a027b7d"),
    (QUERY.encode_response, QUERY.decode_response, r.QueryEnd(0, bytes(16)), f"1a12 1210{'00' * 16}"),
    (WORK.encode_request, WORK.decode_request, r.Work(queue="q", records=4, bytes=300), "0a08 0a0171 1004 18ac02"),
    (WORK.encode_request, WORK.decode_request, r.Credit(sequence=1, records=0, bytes=0), "1202 0801"),
    (
        WORK.encode_request,
        WORK.decode_request,
        r.Settle((Settlement(7, 1, Verdict.ACKNOWLEDGE), Settlement(8, 2, Verdict.REQUEUE, 1.0, "r"))),
        "1a1c 0a06 0807 1001 1801 0a12 0808 1002 1802 21000000000000f03f 2a0172",
    ),
    (WORK.encode_request, WORK.decode_request, r.Leave(), "2200"),
    (
        WORK.encode_response,
        WORK.decode_response,
        r.WorkOpened(consumer="w", content_type="t", lease=30.0),
        "0a0f 0a0177 120174 190000000000003e40",
    ),
    (
        WORK.encode_response,
        WORK.decode_response,
        r.Deliveries((QueuedRecord(7, 1, 0, b"{}"), QueuedRecord(8, 2, -1, b"", "k"))),
        "1217 0a020708 12020102 1a020001 22027b7d 2200 2a00 2a016b",
    ),
    (WORK.encode_response, WORK.decode_response, r.Settled((True, False)), "1a04 0a020100"),
    (WORK.encode_response, WORK.decode_response, r.Settled((), "no"), "1a04 12026e6f"),
    (WORK.encode_response, WORK.decode_response, r.CreditSet(1, 2, stalled=True), "2206 0801 1002 1801"),
    (WORK.encode_response, WORK.decode_response, r.Left(), "2a00"),
    (GET_QUEUE.encode_request, GET_QUEUE.decode_request, r.GetQueue(queue="q"), "0a0171"),
    (
        GET_QUEUE.encode_response,
        GET_QUEUE.decode_response,
        QueueFigures(queue="q", ready=1, delayed=2, in_flight=3, dead=4, consumers=5, stalled=6),
        "0a0171 1001 1802 2003 2804 3005 3806",
    ),
]


@pytest.mark.parametrize(("encode", "decode", "message", "wire"), FIXED, ids=lambda value: type(value).__name__)
def test_bytes_on_the_wire(
    encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], message: object, wire: str
) -> None:
    assert encode(message).hex() == wire.replace(" ", "")
    assert decode(bytes.fromhex(wire)) == message


def test_unspecified_values_of_records_have_their_defaults() -> None:
    opening = pb.BulkRequest(open=pb.OpenBulk(collection="c")).SerializeToString()
    assert BULK.decode_request(opening) == r.OpenBulk(collection="c")
    query = pb.QueryRequest(open=pb.OpenQuery(source="s")).SerializeToString()
    assert QUERY.decode_request(query) == r.Query(source="s")


def test_keys_that_nobody_has_are_none() -> None:
    batch = pb.RecordBatch(data=[b"x", b"y"], keys=["", ""])
    assert BULK.decode_request(pb.BulkRequest(records=batch).SerializeToString()) == RecordBatch([b"x", b"y"])
    delivery = pb.Deliveries(ids=[1], attempts=[1], priorities=[0], data=[b"x"], keys=[""])
    wire = pb.WorkResponse(deliveries=delivery).SerializeToString()
    assert WORK.decode_response(wire) == r.Deliveries((QueuedRecord(1, 1, 0, b"x"),))


HOSTILE_BATCHES = {
    "0 records": pb.RecordBatch(),
    "0 records in one message": pb.RecordBatch(keys=["k"]),
    f"{MESSAGE_RECORDS + 1} records": pb.RecordBatch(data=[b""] * (MESSAGE_RECORDS + 1)),
    "2 records with 1 keys": pb.RecordBatch(data=[b"", b""], keys=["k"]),
    "2 records with 3 keys": pb.RecordBatch(data=[b"", b""], keys=["k", "", ""]),
    "a key of 256 bytes": pb.RecordBatch(data=[b""], keys=["k" * 256]),
    "a key of 258 bytes": pb.RecordBatch(data=[b"", b""], keys=["", "ü" * 129]),
}


@pytest.mark.parametrize("problem", HOSTILE_BATCHES)
def test_records_that_are_none_are_refused(problem: str) -> None:
    batch = HOSTILE_BATCHES[problem]
    with pytest.raises(ProtocolError, match=problem):
        BULK.decode_request(pb.BulkRequest(records=batch).SerializeToString())
    with pytest.raises(ProtocolError, match=problem):
        QUERY.decode_response(pb.QueryResponse(records=batch).SerializeToString())


def one_delivery(**values: Any) -> pb.Deliveries:
    return pb.Deliveries(**{"ids": [1], "attempts": [1], "priorities": [0], "data": [b"x"], **values})


HOSTILE_DELIVERIES = {
    "0 records": pb.Deliveries(ids=[1], attempts=[1], priorities=[1]),
    f"{MESSAGE_RECORDS + 1} records": pb.Deliveries(data=[b""] * (MESSAGE_RECORDS + 1)),
    "1 deliveries with 0 ids": one_delivery(ids=[]),
    "1 deliveries with 2 ids": one_delivery(ids=[1, 2]),
    "1 deliveries with 1 ids, 0 attempts": one_delivery(attempts=[]),
    "1 deliveries with 1 ids, 1 attempts and 3 priorities": one_delivery(priorities=[0, 0, 0]),
    "attempt 0": one_delivery(attempts=[0]),
    "1 records with 2 keys": one_delivery(keys=["a", "b"]),
    "a key of 256 bytes": one_delivery(keys=["k" * 256]),
}


@pytest.mark.parametrize("problem", HOSTILE_DELIVERIES)
def test_deliveries_that_are_none_are_refused(problem: str) -> None:
    wire = pb.WorkResponse(deliveries=HOSTILE_DELIVERIES[problem]).SerializeToString()
    with pytest.raises(ProtocolError, match=problem):
        WORK.decode_response(wire)


HOSTILE_SETTLEMENTS = {
    "verdict: 0 is unknown": pb.Settlement(id=1, attempt=1),
    "attempt: is 0": pb.Settlement(id=1, verdict=pb.VERDICT_EXTEND),
    "seconds: -1 is no time": pb.Settlement(id=1, attempt=1, verdict=pb.VERDICT_EXTEND, seconds=-1),
    "seconds: nan is no time": pb.Settlement(id=1, attempt=1, verdict=pb.VERDICT_EXTEND, seconds=float("nan")),
    "seconds: inf is no time": pb.Settlement(id=1, attempt=1, verdict=pb.VERDICT_EXTEND, seconds=float("inf")),
    "reason: 1025 characters": pb.Settlement(id=1, attempt=1, verdict=pb.VERDICT_REQUEUE, reason="x" * 1025),
}


@pytest.mark.parametrize("problem", HOSTILE_SETTLEMENTS)
def test_answers_without_a_meaning_are_refused(problem: str) -> None:
    wire = pb.WorkRequest(settle=pb.Settle(settlements=[HOSTILE_SETTLEMENTS[problem]])).SerializeToString()
    with pytest.raises(InvalidArgument, match=problem):
        WORK.decode_request(wire)


def test_none_and_too_many_answers_are_refused() -> None:
    answer = pb.Settlement(id=1, attempt=1, verdict=pb.VERDICT_ACKNOWLEDGE)
    for count in (0, MESSAGE_RECORDS + 1):
        wire = pb.WorkRequest(settle=pb.Settle(settlements=[answer] * count)).SerializeToString()
        with pytest.raises(ProtocolError, match=f"{count} answers in one message"):
            WORK.decode_request(wire)


@pytest.mark.parametrize("length", [0, 15, 17])
def test_digests_of_wrong_length_are_refused(length: int) -> None:
    digest = bytes(length)
    result = pb.BulkResult(digest=digest)
    with pytest.raises(ProtocolError, match=f"digest of {length} bytes"):
        BULK.decode_request(pb.BulkRequest(commit=pb.CommitBulk(records=1, digest=digest)).SerializeToString())
    for response in (
        pb.BulkResponse(committed=pb.BulkCommitted(result=result)),
        pb.BulkResponse(opened=pb.BulkOpened(result=result)),
    ):
        with pytest.raises(ProtocolError, match=f"digest of {length} bytes"):
            BULK.decode_response(response.SerializeToString())
    with pytest.raises(ProtocolError, match=f"digest of {length} bytes"):
        QUERY.decode_response(pb.QueryResponse(end=pb.QueryEnd(digest=digest)).SerializeToString())


def test_unknown_enum_values_about_records_are_refused() -> None:
    # Behind the name: reporting 9; and verdict 9 in a settlement.
    with pytest.raises(InvalidArgument, match="reporting: 9 is unknown"):
        BULK.decode_request(bytes.fromhex("0a05 0a0163 2009"))
    with pytest.raises(InvalidArgument, match="verdict: 9 is unknown"):
        WORK.decode_request(bytes.fromhex("1a08 0a06 0807 1001 1809"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_refused_as_arguments(value: float) -> None:
    with pytest.raises(InvalidArgument, match=r"limit: .* is no finite number"):
        QUERY.encode_request(r.Query(source="s", arguments={"limit": value}))
    opening = pb.OpenQuery(source="s", arguments={"limit": pb.Value(double_value=value)})
    with pytest.raises(InvalidArgument, match=r"limit: .* is no finite number"):
        QUERY.decode_request(pb.QueryRequest(open=opening).SerializeToString())


def test_arguments_outside_the_wire_are_the_callers_fault() -> None:
    for value, problem in ((2**63, "more than 64 bits"), (-(2**63) - 1, "more than 64 bits"), ("\ud800", "surrogate")):
        with pytest.raises(InvalidArgument, match=f"limit: .*{problem}"):
            QUERY.encode_request(r.Query(source="s", arguments={"limit": value}))
    with pytest.raises(InvalidArgument, match="Work: "):
        WORK.encode_request(r.Work(queue="q", records=-1, bytes=0))
    with pytest.raises(InvalidArgument, match="OpenBulk: "):
        BULK.encode_request(r.OpenBulk(collection="c", priority=2**31))
    with pytest.raises(InvalidArgument, match="RecordBatch: "):
        BULK.encode_request(RecordBatch([b"x"], ["\ud800"]))


def test_the_largest_record_passes_below_the_default_of_grpc() -> None:
    batch = RecordBatch([bytes(MAX_RECORD_SIZE - 255)], ["k" * 255])
    delivery = r.Deliveries((QueuedRecord(2**64 - 1, 2**32 - 1, -1000, batch.data[0], "k" * 255),))
    for method, message in ((QUERY, batch), (WORK, delivery)):
        wire = method.encode_response(message)
        assert len(wire) <= MAX_DATA_MESSAGE < GRPC_DEFAULT_MAXIMUM
        assert method.decode_response(wire) == message
    assert BULK.decode_request(BULK.encode_request(batch)) == batch


def test_a_full_message_of_the_smallest_records_passes() -> None:
    count = MESSAGE_RECORDS
    batch = RecordBatch([b"x" * (MESSAGE_BYTES // count - 8 - 3)] * count, ["key"] * count)
    assert batch.size == MESSAGE_BYTES
    assert BULK.decode_request(BULK.encode_request(batch)) == batch


def test_sizes_of_messages_about_records_are_limited_both_ways() -> None:
    batch = RecordBatch([bytes(MAX_DATA_MESSAGE)])
    wire = pb.BulkRequest(records=pb.RecordBatch(data=batch.data)).SerializeToString()
    deliveries = r.Deliveries((QueuedRecord(1, 1, 0, batch.data[0]),))
    with pytest.raises(MessageTooLarge):
        BULK.encode_request(batch)
    with pytest.raises(MessageTooLarge):
        QUERY.encode_response(batch)
    with pytest.raises(MessageTooLarge):
        WORK.encode_response(deliveries)
    decoders: list[Callable[[bytes], Any]] = [BULK.decode_request, QUERY.decode_response, WORK.decode_response]
    for decode in decoders:
        with pytest.raises(MessageTooLarge) as caught:
            decode(wire)
        assert (caught.value.size, caught.value.maximum) == (len(wire), MAX_DATA_MESSAGE)
    # Control messages have the smaller limit, also where records may come.
    long = "x" * MAX_CONTROL_MESSAGE
    with pytest.raises(MessageTooLarge):
        BULK.encode_request(r.OpenBulk(collection=long))
    controls: list[tuple[Callable[[bytes], Any], Any]] = [
        (BULK.decode_request, pb.BulkRequest(open=pb.OpenBulk(collection=long))),
        (QUERY.decode_response, pb.QueryResponse(started=pb.QueryStarted(content_type=long))),
        (WORK.decode_response, pb.WorkResponse(settled=pb.Settled(failed=long))),
    ]
    for decode, message in controls:
        with pytest.raises(MessageTooLarge) as caught:
            decode(message.SerializeToString())
        assert caught.value.maximum == MAX_CONTROL_MESSAGE
