"""PROTOCOL.md says what the code does: the WebSocket binding and the plain HTTP door."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from protocol_document import (
    FIRST_CHUNK,
    SECOND,
    SECOND_CHUNK,
    SECOND_CHUNK_READ,
    Row,
    blocks,
    from_hex,
    prose,
    quoted,
    section,
    table,
    tables,
)

from tailrace_common_api import (
    MAX_KEY_SIZE,
    MAX_RECORD_SIZE,
    RECORD_OVERHEAD,
    BulkResult,
    Checkpoint,
    Limits,
    Metadata,
    QueuedRecord,
    RecordBatch,
    RecordLimits,
    Settlement,
    Status,
)
from tailrace_impl_common import RecordDigest, messages, record_messages
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb
from tailrace_impl_websocket import _chunk_frame as websocket_frames
from tailrace_impl_websocket import _codec as websocket_codec
from tailrace_impl_websocket import _codec_records as websocket_records
from tailrace_impl_websocket import _error_table as websocket_errors
from tailrace_impl_websocket._record_frame import (
    RECORD_HEADER_SIZE,
    frame_deliveries,
    frame_records,
    parse_deliveries,
    parse_records,
)

_HEX = {"hash": 16, "head": 32, "digest": 32, "sha256": 64}
_WRONG: dict[str, list[Any]] = {
    "uint": [-1, 2**53, 1.0, "1", True],
    "int": [2**63, 1.0, "1", True],
    "number": ["1", True],
    "text": [1, "\ud800"],
    "flag": [1, "true"],
    "state": ["DONE", 1],
    "visibility": ["secret", 1],
    "context_state": ["GONE", 1],
    "event_kind": ["LOST", 1],
    "reporting": ["some", 1],
    "verdict": ["ignore", 1],
    "labels": [[], {"a": 1}],
    "arguments": [[], {"a": []}, {"a": 2**63}, {"a": "\ud800"}],
    "details": [[], {"a": []}],
    **{name: ["0" * (digits - 1), "A" * digits, 1] for name, digits in _HEX.items()},
}
_RIGHT: dict[str, Any] = {
    "uint": 7,
    "int": 7,
    "number": 1.5,
    "text": "a/b",
    "flag": True,
    "state": "COMPLETED",
    "visibility": "atomic",
    "context_state": "OPEN",
    "event_kind": "CREATED",
    "reporting": "all",
    "verdict": "requeue",
    "labels": {"a": "b"},
    "arguments": {"a": "b", "c": 1, "d": 1.5, "e": True, "f": None},
    "details": {"id": "x"},
    **{name: "0a" * (digits // 2) for name, digits in _HEX.items()},
}
_ALSO_RIGHT: dict[str, list[Any]] = {"int": [-5, 2**63 - 1], "uint": [2**53 - 1], "number": [3], "labels": [{}]}
_EXCLUSIVE = {"follow": ("from_offset", "last_bytes", "last_lines"), "locate": ("line", "offset")}


def field_types(cell: str) -> dict[str, tuple[str, bool]]:
    """Return name, type and whether it is required of each field in a cell."""
    found = re.findall(r"`(\w+)(\??): ([\w\[\]]+)`", cell)
    return {name: (type_, not mark) for name, mark, type_ in found}


def objects() -> dict[str, dict[str, tuple[str, bool]]]:
    return {quoted(row["object"])[0]: field_types(row["fields"]) for row in table("5.3", "object")}


def right(type_: str) -> Any:
    if type_.startswith("["):
        return [right(type_[1:-1])]
    if type_ in objects():
        return {name: right(inner) for name, (inner, _) in objects()[type_].items()}
    return _RIGHT[type_]


def wrong(type_: str) -> list[Any]:
    if type_.startswith("["):
        return [{}, "x", *[[value] for value in wrong(type_[1:-1])]]
    if type_ in objects():
        lists: list[Any] = ["x", []]
        return lists + [
            {**right(type_), name: value} for name, (inner, _) in objects()[type_].items() for value in wrong(inner)[:2]
        ]
    return _WRONG[type_]


def message_tables() -> Iterator[tuple[str, Row]]:
    from_client, from_server = (rows for rows in tables(section("5.3")) if next(iter(rows[0])) == "`type`")
    for side, rows in (("client", from_client), ("server", from_server)):
        for row in rows:
            yield side, row


def parameters(rows: Iterable[tuple[str, Row]]) -> list[Any]:
    return [pytest.param(side, row, id=f"{side}-{row['`type`'].strip('`')}") for side, row in rows]


MESSAGES = parameters(message_tables())
NAMED_MESSAGES = parameters((side, row) for side, row in message_tables() if "–" not in row["message"])


def decode(side: str, text: str) -> Any:
    read = websocket_codec.decode_from_client if side == "client" else websocket_codec.decode_from_server
    return read(text)


def encode(side: str, decoded: Any) -> dict[str, Any]:
    write: Any = websocket_codec.encode_from_client if side == "client" else websocket_codec.encode_from_server
    fields: dict[str, Any] = json.loads(write(decoded.request, decoded.message))
    return fields


def filled(row: Row) -> tuple[dict[str, Any], dict[str, tuple[str, bool]]]:
    """Return a message with every field that its table has, and the fields that can be tried one by one."""
    name = quoted(row["`type`"])[0]
    fields = field_types(row["fields"])
    alone = _EXCLUSIVE.get(name, ())[1:]
    fields = {key: value for key, value in fields.items() if key not in alone}
    message = {"type": name, **{key: right(type_) for key, (type_, _) in fields.items()}}
    if name == "hello":
        message["protocol"] = websocket_codec.PROTOCOL_VERSION
    if name == "error":
        message["code"] = "not_found"
    if name not in ("authenticate", "ping", "pong", "hello"):
        message["request"] = 3
    return message, fields


@pytest.mark.parametrize(("side", "row"), MESSAGES)
def test_websocket_message_has_the_fields_of_its_table(side: str, row: Row) -> None:
    message, fields = filled(row)
    decoded = decode(side, json.dumps(message))
    assert encode(side, decoded) == message
    assert decoded.request == message.get("request")
    for name, (type_, required) in fields.items():
        without = json.dumps({key: value for key, value in message.items() if key != name})
        if required:
            with pytest.raises(websocket_codec.Malformed):
                decode(side, without)
        elif name not in _EXCLUSIVE["locate"]:
            decode(side, without)
            decode(side, json.dumps({**message, name: None}))
        for value in wrong(type_):
            with pytest.raises(websocket_codec.Malformed):
                decode(side, json.dumps({**message, name: value}))
        for value in _ALSO_RIGHT.get(type_, []) if name != "protocol" else []:
            decode(side, json.dumps({**message, name: value}))
    decode(side, json.dumps({**message, "later": {"a": [1]}}))


@pytest.mark.parametrize(("side", "row"), NAMED_MESSAGES)
def test_websocket_table_names_the_message(side: str, row: Row) -> None:
    decoded = decode(side, json.dumps(filled(row)[0]))
    assert type(decoded.message).__name__ == quoted(row["message"])[0]


# Where the wire spreads a value of a message over several fields, or gives it another name.
_SPREAD = {
    ("Follow", "start"): ["from_offset", "last_bytes", "last_lines"],
    ("Located", "position"): ["line", "offset"],
    ("List", "filter"): ["labels", "context", "state", "created_from", "created_before"],
    ("Listed", "page"): ["statuses", "next_token"],
}


@pytest.mark.parametrize(("side", "row"), NAMED_MESSAGES)
def test_websocket_table_has_every_field_of_the_message(side: str, row: Row) -> None:
    name = quoted(row["message"])[0]
    named = Checkpoint if name == "Checkpoint" else getattr(record_messages, name, None) or getattr(messages, name)
    hints = typing.get_type_hints(named)
    expected = [wire for field in hints for wire in _SPREAD.get((name, field), [field])]
    assert list(field_types(row["fields"])) == (["status"] if name == "Status" else expected)


def test_websocket_objects_of_records() -> None:
    for cls in (RecordLimits, BulkResult, Settlement):
        assert list(objects()[cls.__name__]) == list(typing.get_type_hints(cls))


@pytest.mark.parametrize(("name", "cls"), [("Metadata", Metadata), ("Status", Status), ("Limits", Limits)])
def test_websocket_objects(name: str, cls: type) -> None:
    fields = objects()[name]
    assert list(fields) == list(typing.get_type_hints(cls))
    carrier: dict[str, dict[str, Any]] = {
        "Metadata": {"type": "open_upload", "request": 1},
        "Status": {"type": "status", "request": 1},
        "Limits": {"type": "hello", "protocol": 1, "keepalive_interval": 20},
    }
    side = "client" if name == "Metadata" else "server"
    for field, (_, required) in fields.items():
        value = {key: content for key, content in right(name).items() if key != field}
        text = json.dumps({**carrier[name], name.lower(): value})
        if required:
            with pytest.raises(websocket_codec.Malformed):
                decode(side, text)
        else:
            decode(side, text)


def test_websocket_alternatives_within_a_message() -> None:
    for name, alternatives in _EXCLUSIVE.items():
        base = {"type": name, "request": 1, "id": "x"}
        for alternative in alternatives:
            assert encode("client", decode("client", json.dumps({**base, alternative: 7})))[alternative] == 7
        with pytest.raises(websocket_codec.Malformed):
            decode("client", json.dumps({**base, **dict.fromkeys(alternatives, 7)}))


def test_websocket_examples() -> None:
    for side, block in zip(("client", "server"), blocks(section("5.3"), "json"), strict=True):
        written = [json.loads(line) for line in block.splitlines()]
        types = [quoted(row["`type`"])[0] for of, row in message_tables() if of == side]
        assert [message["type"] for message in written] == types
        for message in written:
            again = encode(side, decode(side, json.dumps(message)))
            assert {key: again[key] for key in message if key != "metadata"} == {
                key: value for key, value in message.items() if key != "metadata"
            }


def test_trace_comes_with_the_first_message_of_a_conversation() -> None:
    said = re.search(r"the field `(\w+)`: an object with the strings (.*?), as in", prose("5.3"))
    assert said
    trace = dict.fromkeys(quoted(said[2]), "x")
    for side, row in message_tables():
        if side == "client":
            message = filled(row)[0]
            decoded = websocket_codec.decode_from_client(json.dumps({**message, said[1]: {**trace, "other": "y"}}))
            assert decoded.trace == (trace if isinstance(decoded.message, websocket_codec.REQUESTS) else {})
            again = json.loads(websocket_codec.encode_from_client(decoded.request, decoded.message, decoded.trace))
            assert again.get(said[1], {}) == decoded.trace


def test_every_websocket_message_is_in_a_table() -> None:
    written = {
        side: {quoted(row["`type`"])[0] for of, row in message_tables() if of == side} for side in ("client", "server")
    }
    assert written["client"] == {*websocket_codec._CLIENT_READERS, "authenticate", "ping"}
    assert written["server"] == {*websocket_codec._SERVER_READERS, "hello", "pong"}


def test_layout_of_binary_messages() -> None:
    rows = table("5.4", "offset")
    checkpoint = SECOND_CHUNK_READ.checkpoint
    assert checkpoint is not None
    expected = [
        b"\x01",
        b"\x02",
        bytes(2),
        bytes.fromhex("01020304"),
        SECOND_CHUNK_READ.offset.to_bytes(8, "big"),
        SECOND_CHUNK_READ.hash,
        SECOND_CHUNK_READ.previous,
        checkpoint.newlines.to_bytes(8, "big"),
        checkpoint.head,
    ]
    frame = websocket_frames.frame_chunk(0x01020304, SECOND_CHUNK_READ)
    position = 0
    for row, value in zip(rows, expected, strict=False):
        assert int(row["offset"]) == position
        assert frame[position : position + int(row["size"])] == value
        position += int(row["size"])
    assert rows[-1]["offset"] == f"{websocket_frames.HEADER_SIZE} or {position}"
    assert frame[position:] == SECOND
    assert position == websocket_frames.HEADER_SIZE + websocket_frames.CHECKPOINT_SIZE


def test_examples_of_binary_messages() -> None:
    dumps = [from_hex(block) for block in blocks(section("5.4"), "hex")]
    chunks = ((1, FIRST_CHUNK), (1, SECOND_CHUNK), (2, SECOND_CHUNK_READ))
    assert dumps == [websocket_frames.frame_chunk(request, chunk) for request, chunk in chunks]
    assert [websocket_frames.parse_chunk(dump) for dump in dumps] == [chunk for _, chunk in chunks]


RECORDS = RecordBatch([b'{"n":10}', b'{"n":20}', b'{"n":333}'], [None, "k2", None])
DELIVERY = QueuedRecord(id=41, attempt=1, priority=5, data=b'{"n":10}')


def test_layouts_of_records() -> None:
    header = table("5.8", "offset")
    entries = [rows for rows in tables(section("5.8")) if next(iter(rows[0])) == "at"]
    of_record, of_delivery = ([(int(row["at"]), int(row["size"])) for row in rows] for rows in entries)
    record = frame_records(0x01020304, RecordBatch([b"data"], ["key"]))
    delivery = frame_deliveries(0x01020304, record_messages.Deliveries((QueuedRecord(7, 8, -9, b"data", "key"),)))
    lengths = [bytes((0, 0, 0, 4)), bytes((0, 0, 0, 3))]
    for layout, frame, entry, values in (
        (2, record, of_record, lengths),
        (
            3,
            delivery,
            of_delivery,
            [(7).to_bytes(8, "big"), (8).to_bytes(4, "big"), (-9).to_bytes(4, "big", signed=True), *lengths],
        ),
    ):
        expected = [bytes((layout,)), b"\0", bytes(2), bytes.fromhex("01020304"), (1).to_bytes(4, "big"), bytes(4)]
        position = 0
        for row, value in zip(header, expected, strict=False):
            assert int(row["offset"]) == position
            assert frame[position : position + int(row["size"])] == value
            position += int(row["size"])
        assert int(header[-1]["offset"]) == position == RECORD_HEADER_SIZE
        for (at, size), value in zip(entry, values, strict=True):
            assert frame[position + at : position + at + size] == value
        assert frame[position + sum(entry[-1]) :] == b"datakey"
    assert sum(of_record[-1]) == RECORD_OVERHEAD


def test_examples_of_binary_messages_of_records() -> None:
    records, delivery = (from_hex(block) for block in blocks(section("5.8"), "hex"))
    assert frame_records(17, RECORDS) == records
    assert parse_records(records) == RECORDS
    assert frame_deliveries(19, record_messages.Deliveries((DELIVERY,))) == delivery
    assert parse_deliveries(delivery).records == (DELIVERY,)


def test_bounds_of_records() -> None:
    text = prose("5.8")
    assert f"1 to {record_messages.MESSAGE_RECORDS:,}" in text
    assert f"at most {record_messages.MESSAGE_BYTES:,} bytes" in text
    assert f"at most {MAX_KEY_SIZE};" in text
    assert f"1 to {record_messages.MESSAGE_RECORDS:,} settlements" in prose("5.3")
    assert f"at most {websocket_records.MAX_REASON:,} characters" in prose("5.3")
    assert len(frame_records(1, RecordBatch([bytes(MAX_RECORD_SIZE)]))) < websocket_frames.MAX_FRAME_SIZE


def test_examples_of_records_agree_with_one_another() -> None:
    said = {
        message["type"]: message
        for block in blocks(section("5.3"), "json")
        for message in map(json.loads, block.splitlines())
    }
    digest = RecordDigest()
    digest.update(RECORDS)
    for end in (said["commit_bulk"], said["query_end"], said["bulk_committed"]["result"]):
        assert (end["records"], end["digest"]) == (len(RECORDS.data), digest.digest().hex())
    assert said["bulk_committed"]["result"]["size"] == RECORDS.size - RECORD_OVERHEAD * len(RECORDS.data)


def test_names_on_the_wire_have_the_version() -> None:
    text = prose("9")
    assert f"subprotocol `{websocket_codec.SUBPROTOCOL}`" in text
    assert f"path `{websocket_codec.PATH}`" in text
    assert f"`hello.protocol` {websocket_codec.PROTOCOL_VERSION}" in text
    assert f"package `{pb.DESCRIPTOR.package}`" in text


def test_close_codes() -> None:
    listed = {int(row["code"]) for row in table("5.6", "code")}
    assert {status.close_code for status in websocket_errors.ERROR_TABLE.values()} <= listed
