"""Records on the wire: binary frames of records and deliveries, and what is said of them in text frames."""

from __future__ import annotations

import json
import math
import struct
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from impl_websocket_messages import batches, deliveries

from tailrace_common_api import (
    MAX_KEY_SIZE,
    MAX_RECORD_SIZE,
    InvalidArgument,
    MessageTooLarge,
    ProtocolError,
    QueuedRecord,
    RecordBatch,
    Reporting,
    Settlement,
    TailraceError,
    Unsupported,
    Verdict,
)
from tailrace_impl_common.messages import Chunk
from tailrace_impl_common.record_messages import (
    MESSAGE_RECORDS,
    Deliveries,
    OpenBulk,
    Query,
    Settle,
    Settled,
)
from tailrace_impl_websocket._binary_frame import data_size, frame_of, frame_request, parse_frame
from tailrace_impl_websocket._chunk_frame import MAX_FRAME_SIZE, parse_chunk
from tailrace_impl_websocket._codec import (
    MAX_REQUEST,
    Malformed,
    decode_from_client,
    decode_from_server,
    encode_from_client,
    encode_from_server,
)
from tailrace_impl_websocket._record_frame import (
    delivery_figures,
    frame_deliveries,
    frame_records,
    parse_deliveries,
    parse_records,
)

numbers = st.integers(1, MAX_REQUEST)
DELIVERY = QueuedRecord(id=7, attempt=2, priority=-3, data=b"data", key="ü")


# Round trips


when_busy = settings(suppress_health_check=[HealthCheck.too_slow])
"""How long it takes to draw values says something of the machine only."""


@when_busy
@given(numbers, batches)
def test_records_come_back(number: int, batch: RecordBatch) -> None:
    frame = frame_of(number, batch)
    assert frame_request(frame) == number
    assert data_size(frame) == batch.size
    assert parse_frame(frame) == batch


@when_busy
@given(numbers, deliveries)
def test_deliveries_come_back(number: int, message: Deliveries) -> None:
    frame = frame_of(number, message)
    assert frame_request(frame) == number
    assert delivery_figures(frame) == (len(message.records), sum(record.size for record in message.records))
    assert parse_frame(frame) == message


def test_chunks_are_frames_like_the_others() -> None:
    chunk = Chunk(7, b"data", bytes(8), b"p" * 8)
    frame = frame_of(3, chunk)
    assert (frame_request(frame), data_size(frame), parse_frame(frame)) == (3, 4, chunk)


def test_keys_that_nobody_has_are_not_there() -> None:
    assert parse_records(frame_records(1, RecordBatch([b"a", b"b"], [None, None]))) == RecordBatch([b"a", b"b"])


def test_largest_record_fits_into_a_frame() -> None:
    record, key = bytes(MAX_RECORD_SIZE - MAX_KEY_SIZE), "k" * MAX_KEY_SIZE
    assert parse_records(frame_records(1, RecordBatch([record], [key]))) == RecordBatch([record], [key])
    message = Deliveries((QueuedRecord(1, 1, 0, record, key),))
    assert parse_deliveries(frame_deliveries(1, message)) == message


def test_most_records_of_a_message_fit_into_a_frame() -> None:
    batch = RecordBatch([b""] * MESSAGE_RECORDS)
    assert parse_records(frame_records(1, batch)) == batch


# The layouts, as PROTOCOL.md states them


def test_layout_of_records() -> None:
    frame = frame_records(0x01020304, RecordBatch([b"ab", b"", b"c"], ["k", None, "ü"]))
    assert frame.hex() == (
        "02000000010203040000000300000000000000020000000100000000000000000000000100000002" + "abckü".encode().hex()
    )


def test_layout_of_deliveries() -> None:
    assert frame_deliveries(1, Deliveries((DELIVERY,))).hex() == (
        "03000000"
        "00000001"
        "00000001"
        "00000000"
        "0000000000000007"
        "00000002"
        "fffffffd"
        "00000004"
        "00000002" + b"data".hex() + "ü".encode().hex()
    )


# Frames that others may send

RECORDS = frame_records(1, RecordBatch([b"one", b"two"], ["k", None]))
DELIVERIES = frame_deliveries(1, Deliveries((DELIVERY,)))


def changed(frame: bytes, at: int, value: bytes) -> bytes:
    return frame[:at] + value + frame[at + len(value) :]


def lengths(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


@pytest.mark.parametrize(
    "frame",
    [
        RECORDS[:15],
        RECORDS[:16],
        RECORDS[:31],
        RECORDS[:-1],
        RECORDS + b"x",
        changed(RECORDS, 0, b"\x01"),
        changed(RECORDS, 0, b"\x03"),
        changed(RECORDS, 1, b"\x01"),
        changed(RECORDS, 2, b"\x01"),
        changed(RECORDS, 3, b"\x01"),
        changed(RECORDS, 8, lengths(0)),
        changed(RECORDS, 8, lengths(1)),
        changed(RECORDS, 8, lengths(3)),
        changed(RECORDS, 8, lengths(MESSAGE_RECORDS + 1)),
        changed(RECORDS, 8, lengths(2**32 - 1)),
        changed(RECORDS, 12, lengths(1)),
        changed(RECORDS, 16, lengths(2**32 - 1)),
        changed(RECORDS, 16, lengths(2)),
        changed(RECORDS, 20, lengths(0)),
        # Half a character.
        changed(RECORDS, len(RECORDS) - 1, b"\xc3"),
        changed(RECORDS, len(RECORDS) - 1, b"\xff"),
        # The halves of a surrogate pair have no UTF-8.
        frame_records(1, RecordBatch([b""], ["aaa"]))[:-3] + b"\xed\xa0\x80",
        frame_records(1, RecordBatch([b""] * (MESSAGE_RECORDS + 1))),
        frame_records(1, RecordBatch([b""], ["k" * (MAX_KEY_SIZE + 1)])),
    ],
)
def test_frame_that_holds_no_records(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_records(frame)


@pytest.mark.parametrize(
    "frame",
    [
        DELIVERIES[:39],
        DELIVERIES[:-1],
        DELIVERIES + b"x",
        changed(DELIVERIES, 0, b"\x02"),
        changed(DELIVERIES, 1, b"\x80"),
        changed(DELIVERIES, 8, lengths(0)),
        changed(DELIVERIES, 8, lengths(2)),
        # What answers say has to fit into JSON.
        changed(DELIVERIES, 16, b"\x80"),
        changed(DELIVERIES, 24, lengths(0)),
        changed(DELIVERIES, 32, lengths(3)),
        changed(DELIVERIES, 36, lengths(3)),
        changed(DELIVERIES, len(DELIVERIES) - 1, b"\xff"),
    ],
)
def test_frame_that_holds_no_deliveries(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_deliveries(frame)


@pytest.mark.parametrize("key", ["x" * 254 + "ü", "ü" * 128])
def test_keys_are_measured_in_bytes(key: str) -> None:
    with pytest.raises(ProtocolError, match="a key of 256 bytes"):
        parse_records(frame_records(1, RecordBatch([b""], [key])))


@pytest.mark.parametrize("parse", [parse_records, parse_deliveries])
def test_frame_of_records_that_is_too_large(parse: object) -> None:
    layout = 2 if parse is parse_records else 3
    with pytest.raises(MessageTooLarge) as caught:
        parse_frame(bytes((layout,)) + bytes(MAX_FRAME_SIZE))
    assert caught.value.maximum == MAX_FRAME_SIZE


def test_layouts_are_not_mistaken_for_one_another() -> None:
    for frame, parsers in (
        (RECORDS, (parse_chunk, parse_deliveries)),
        (DELIVERIES, (parse_chunk, parse_records)),
        (frame_of(1, Chunk(0, b"data" * 20, bytes(8), b"")), (parse_records, parse_deliveries)),
    ):
        for parse in parsers:
            with pytest.raises(ProtocolError, match="layout"):
                parse(frame)


@given(st.sampled_from([b"\x02", b"\x03"]), st.binary(max_size=120))
def test_garbage_raises_nothing_else(layout: bytes, rest: bytes) -> None:
    with suppress(TailraceError):
        frame_request(layout + rest)
        parse_frame(layout + rest)


@when_busy
@given(st.data(), batches | deliveries)
def test_changed_frames_raise_nothing_else(data: st.DataObject, message: RecordBatch | Deliveries) -> None:
    frame = bytearray(frame_of(1, message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, min(len(frame), 200) - 1))] = data.draw(st.integers(0, 255))
    with suppress(TailraceError):
        frame_request(bytes(frame))
        parse_frame(bytes(frame))


# Text frames


def decoded(**fields: object) -> object:
    return decode_from_client(json.dumps({"request": 1, **fields})).message


def test_text_frames_are_as_documented() -> None:
    assert json.loads(encode_from_client(5, OpenBulk(collection="contacts"))) == {
        "type": "open_bulk",
        "request": 5,
        "collection": "contacts",
        "reporting": "first",
        "priority": 0,
    }
    settle = Settle((Settlement(7, 1, Verdict.ACKNOWLEDGE), Settlement(8, 2, Verdict.REQUEUE, 1.5, "busy")))
    assert json.loads(encode_from_client(5, settle)) == {
        "type": "settle",
        "request": 5,
        "settlements": [
            {"id": 7, "attempt": 1, "verdict": "acknowledge"},
            {"id": 8, "attempt": 2, "verdict": "requeue", "seconds": 1.5, "reason": "busy"},
        ],
    }
    assert json.loads(encode_from_server(5, Settled((True, False)))) == {
        "type": "settled",
        "request": 5,
        "counted": [True, False],
    }


def test_simple_requests_need_no_more_than_a_name() -> None:
    assert decoded(type="open_bulk", collection="x") == OpenBulk(collection="x")
    assert decoded(type="query", source="x") == Query(source="x")
    assert decoded(type="open_bulk", collection="x", reporting="all", priority=-5, idempotency_key=None) == OpenBulk(
        collection="x", reporting=Reporting.ALL, priority=-5
    )


SETTLEMENT = {"id": 7, "attempt": 1, "verdict": "acknowledge"}


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "open_bulk"},
        {"type": "open_bulk", "collection": 7},
        {"type": "open_bulk", "collection": "x", "priority": "high"},
        {"type": "open_bulk", "collection": "x", "priority": 2**63},
        {"type": "commit_bulk", "records": -1, "digest": "0" * 32},
        {"type": "commit_bulk", "records": 1, "digest": "0" * 16},
        {"type": "query"},
        {"type": "query", "source": "x", "window": -1},
        {"type": "query", "source": "x", "arguments": ["a"]},
        {"type": "query", "source": "x", "arguments": {"a": [1]}},
        {"type": "query", "source": "x", "arguments": {"a": {}}},
        {"type": "query", "source": "x", "arguments": {"a": 2**63}},
        {"type": "query", "source": "x", "arguments": {"a": 10**30}},
        {"type": "query", "source": "x", "arguments": {"a": math.inf}},
        {"type": "query", "source": "x", "arguments": {"a": "\ud800"}},
        {"type": "query", "source": "x", "arguments": {"\ud800": "a"}},
        {"type": "work", "queue": "x"},
        {"type": "work", "queue": "x", "records": -1, "bytes": 1},
        {"type": "work", "queue": "x", "records": 1.0, "bytes": 1},
        {"type": "credit", "records": 1, "bytes": 1},
        {"type": "settle"},
        {"type": "settle", "settlements": []},
        {"type": "settle", "settlements": [7]},
        {"type": "settle", "settlements": [SETTLEMENT] * (MESSAGE_RECORDS + 1)},
        {"type": "settle", "settlements": [{**SETTLEMENT, "id": -1}]},
        {"type": "settle", "settlements": [{**SETTLEMENT, "attempt": 0}]},
        {"type": "settle", "settlements": [{**SETTLEMENT, "seconds": "1"}]},
        {"type": "settle", "settlements": [{**SETTLEMENT, "reason": 1}]},
        {"type": "settle", "settlements": [{"id": 7, "attempt": 1}]},
        {"type": "get_queue"},
        {"type": "bulk_opened"},
    ],
    ids=repr,
)
def test_malformed_message_names_its_request(fields: dict[str, object]) -> None:
    with pytest.raises(Malformed) as caught:
        decode_from_client(json.dumps({"request": 12, **fields}))
    assert caught.value.request == 12
    assert isinstance(caught.value.error, ProtocolError)
    assert len(caught.value.error.message) < 200


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"type": "open_bulk", "collection": "x", "reporting": "some"}, "reporting"),
        ({"type": "settle", "settlements": [{**SETTLEMENT, "verdict": "ignore"}]}, "verdict"),
        ({"type": "settle", "settlements": [{**SETTLEMENT, "seconds": -1}]}, "seconds"),
        ({"type": "settle", "settlements": [{**SETTLEMENT, "reason": "x" * 1025}]}, "reason"),
    ],
)
def test_values_that_the_model_refuses_are_invalid_arguments(fields: dict[str, object], field: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode_from_client(json.dumps({"request": 12, **fields}))
    error = caught.value.error
    assert isinstance(error, InvalidArgument)
    assert error.field == field


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "bulk_opened", "id": "x", "content_type": "y", "until": 1},
        {"type": "bulk_committed"},
        {"type": "query_end", "records": 1},
        {"type": "work_opened", "consumer": "x", "content_type": "y"},
        {"type": "credit_set", "sequence": 1},
        {"type": "settled"},
        {"type": "settled", "counted": [1]},
        {"type": "queue_figures", "queue": "x"},
    ],
    ids=repr,
)
def test_malformed_message_of_a_server(fields: dict[str, object]) -> None:
    with pytest.raises(Malformed) as caught:
        decode_from_server(json.dumps({"request": 12, **fields}))
    assert caught.value.request == 12


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2**63, -(2**63) - 1, "\ud800"])
def test_arguments_that_cannot_be_said_are_refused_before_they_are_sent(value: float | str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        encode_from_client(1, Query(source="x", arguments={"limit": value}))
    assert caught.value.field == "limit"


def test_delays_without_end_are_refused_before_they_are_sent() -> None:
    with pytest.raises(InvalidArgument):
        encode_from_client(1, Settle((Settlement(1, 1, Verdict.REQUEUE, math.inf),)))


def test_records_are_no_text() -> None:
    with pytest.raises(TypeError):
        encode_from_client(1, RecordBatch([b"x"]))
    for message in (RecordBatch([b"x"]), Deliveries((DELIVERY,))):
        with pytest.raises(TypeError):
            encode_from_server(1, message)


def test_unknown_flags_are_unsupported() -> None:
    with pytest.raises(Unsupported):
        parse_records(changed(RECORDS, 1, b"\x01"))
