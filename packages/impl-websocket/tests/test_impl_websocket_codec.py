from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from impl_websocket_messages import chunks, client_messages, limits, server_messages, statuses
from impl_websocket_peer import STATUS

from tailrace_common_api import (
    MAX_OFFSET,
    Checkpoint,
    FromOffset,
    InvalidArgument,
    LastBytes,
    LastLines,
    ListFilter,
    MessageTooLarge,
    Metadata,
    Page,
    ProtocolError,
    TailraceError,
    Unsupported,
)
from tailrace_impl_common import MAX_CHUNK_SIZE
from tailrace_impl_common.messages import (
    Abort,
    Chunk,
    ClientMessage,
    Follow,
    GetHeads,
    GetStatus,
    Limits,
    List,
    Listed,
    Locate,
    OpenUpload,
    Read,
    ReadLines,
    Request,
    ServerMessage,
    Status,
    Watch,
    Window,
)
from tailrace_impl_common.record_messages import OpenBulk
from tailrace_impl_websocket import _codec
from tailrace_impl_websocket._binary_frame import data_size, frame_request
from tailrace_impl_websocket._chunk_frame import (
    CHECKPOINT_SIZE,
    HEADER_SIZE,
    MAX_FRAME_SIZE,
    frame_chunk,
    parse_chunk,
)
from tailrace_impl_websocket._codec import (
    MAX_REQUEST,
    MAX_TEXT_SIZE,
    Authenticate,
    Cancel,
    Hello,
    Malformed,
    Ping,
    Pong,
    decode_from_client,
    decode_from_server,
    encode_from_client,
    encode_from_server,
)

ID = "0" * 32
numbers = st.integers(1, MAX_REQUEST)


# Round trips


@given(numbers, client_messages)
def test_messages_of_the_client_come_back(number: int, message: ClientMessage) -> None:
    assert decode_from_client(encode_from_client(number, message)) == (number, message, {})


@given(numbers, server_messages)
def test_messages_of_the_server_come_back(number: int, message: ServerMessage) -> None:
    assert decode_from_server(encode_from_server(number, message)) == (number, message)


@given(limits)
def test_hello_comes_back(limits: Limits) -> None:
    hello = Hello(1, limits, 20.0)
    assert decode_from_server(encode_from_server(None, hello)) == (None, hello)


def test_token_comes_back() -> None:
    message = Authenticate("a secret")
    assert decode_from_client(encode_from_client(None, message)) == (None, message, {})


TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1"}


@pytest.mark.parametrize(
    "message", [Watch(id=ID), Read(id=ID), GetStatus(id=ID), OpenUpload(metadata=Metadata(name="x"))]
)
def test_trace_comes_with_the_first_message_of_a_request(message: Request) -> None:
    assert decode_from_client(encode_from_client(3, message, TRACE)) == (3, message, TRACE)
    assert decode_from_client(encode_from_client(3, message, {**TRACE, "baggage": "x"})).trace == TRACE
    assert "trace" not in json.loads(encode_from_client(3, message, {"baggage": "x"}))


def test_only_traces_of_a_sound_length_are_taken() -> None:
    for length, taken in ((0, False), (1, True), (512, True), (513, False)):
        trace = {"traceparent": "x" * length}
        text = json.dumps({"type": "watch", "request": 3, "id": ID, "trace": trace})
        assert decode_from_client(text) == (3, Watch(id=ID), trace if taken else {})


def test_tokens_of_an_absurd_length_end_the_connection() -> None:
    assert decode_from_client(json.dumps({"type": "authenticate", "token": "x" * 4096})).message == Authenticate(
        "x" * 4096
    )
    with pytest.raises(Malformed) as caught:
        decode_from_client(json.dumps({"type": "authenticate", "token": "x" * 4097}))
    assert caught.value.request is None
    assert isinstance(caught.value.error, ProtocolError)
    assert "xx" not in caught.value.error.message


def test_trace_of_later_messages_is_ignored() -> None:
    text = json.dumps({"type": "window", "request": 3, "until": 7, "trace": TRACE})
    assert decode_from_client(text) == (3, Window(7), {})


def test_messages_without_fields_come_back() -> None:
    assert decode_from_client(encode_from_client(3, Cancel())) == (3, Cancel(), {})
    assert decode_from_client(encode_from_client(None, Ping())) == (None, Ping(), {})
    assert decode_from_server(encode_from_server(None, Pong())) == (None, Pong())


@given(numbers, chunks)
def test_chunks_come_back_without_copying(number: int, chunk: Chunk) -> None:
    frame = frame_chunk(number, chunk)
    assert frame_request(frame) == number
    assert data_size(frame) == len(chunk.data)
    parsed = parse_chunk(frame)
    assert parsed == chunk
    assert isinstance(parsed.data, memoryview)
    assert parsed.data.obj is frame


def test_largest_chunk_fits() -> None:
    chunk = Chunk(0, bytes(MAX_CHUNK_SIZE), bytes(8), b"")
    assert len(parse_chunk(frame_chunk(1, chunk)).data) == MAX_CHUNK_SIZE


# The layout, as PROTOCOL.md states it


def test_layout_of_a_first_chunk() -> None:
    frame = frame_chunk(0x01020304, Chunk(0x0A0B, b"data", b"h" * 8, b""))
    assert frame.hex() == "01010000" + "01020304" + "0000000000000a0b" + "68" * 8 + "00" * 8 + b"data".hex()


def test_layout_of_a_later_chunk() -> None:
    frame = frame_chunk(1, Chunk(7, b"d", b"h" * 8, b"p" * 8))
    assert frame.hex() == "01000000" + "00000001" + "0000000000000007" + "68" * 8 + "70" * 8 + "64"


def test_previous_of_a_first_chunk_is_ignored() -> None:
    frame = bytearray(frame_chunk(1, Chunk(7, b"d", b"h" * 8, b"p" * 8)))
    frame[1] = 1
    assert parse_chunk(bytes(frame)).previous == b""


def test_text_frames_are_as_documented() -> None:
    assert json.loads(encode_from_client(5, Window(9))) == {"type": "window", "request": 5, "until": 9}
    assert json.loads(encode_from_client(5, Watch(id=ID))) == {"type": "watch", "request": 5, "id": ID}
    assert json.loads(encode_from_client(5, OpenUpload(metadata=Metadata(name="ü")))) == {
        "type": "open_upload",
        "request": 5,
        "metadata": {
            "name": "ü",
            "content_type": "application/octet-stream",
            "lines": False,
            "labels": {},
            "context": None,
        },
        "visibility": "live",
    }


@pytest.mark.parametrize(
    "message", [Window(0), Window(2**63 - 1), Checkpoint(0, 0, bytes(16)), Checkpoint(2**62, 7, bytes(range(16)))]
)
@pytest.mark.parametrize("request_", [1, 2**32 - 1])
def test_texts_that_are_sent_often_are_those_that_the_encoder_makes(
    request_: int, message: Window | Checkpoint
) -> None:
    name, fields = _codec._server_fields(message)
    expected = _codec._to_json(name, request_, fields)
    assert encode_from_server(request_, message) == expected
    if isinstance(message, Window):
        assert encode_from_client(request_, message) == expected


# What others may send


def outcome(text: str) -> object:
    """Return what a text of a server is read as, or why it is not."""
    try:
        return decode_from_server(text)
    except Malformed as malformed:
        return malformed.request, type(malformed.error), str(malformed.error)


@given(numbers, st.integers(0, MAX_OFFSET), st.integers(0, MAX_OFFSET), st.binary(min_size=16, max_size=16))
def test_checkpoint_as_it_is_sent_comes_back(number: int, size: int, newlines: int, head: bytes) -> None:
    checkpoint = Checkpoint(size, newlines, head)
    text = encode_from_server(number, checkpoint)
    assert decode_from_server(text) == decode_from_server(text + " ") == (number, checkpoint)


@pytest.mark.parametrize(
    "number",
    ["0", "7", "999999999999999", "9007199254740991", "9007199254740992", "1" * 30, "07", "-7", "7.0", "٧", ""],
)
@pytest.mark.parametrize("field", ["request", "size", "newlines"])
def test_number_in_a_checkpoint_is_read_as_in_any_message(field: str, number: str) -> None:
    text = encode_from_server(7, Checkpoint(7, 7, bytes(16))).replace(f'"{field}":7', f'"{field}":{number}')
    # White space at the end is for JSON alone: no text that is sent has any.
    assert outcome(text) == outcome(text + " ")


@pytest.mark.parametrize("head", ["0" * 31, "0" * 33, "A" * 32, "g" * 32, "٧" * 32, " " + "0" * 32])
def test_head_in_a_checkpoint_is_read_as_in_any_message(head: str) -> None:
    text = encode_from_server(7, Checkpoint(7, 7, bytes(16))).replace("0" * 32, head)
    assert outcome(text) == outcome(text + " ")
    with pytest.raises(Malformed):
        decode_from_server(text)


def decoded(**fields: object) -> object:
    return decode_from_client(json.dumps({"request": 1, **fields})).message


def test_missing_and_null_optional_fields_are_the_same() -> None:
    assert decoded(type="read", id=ID) == decoded(type="read", id=ID, token=None, start=None, end=None) == Read(id=ID)
    assert isinstance(decoded(type="follow", id=ID), Follow)


def test_metadata_needs_no_more_than_a_name() -> None:
    assert decoded(type="open_upload", metadata={"name": "x"}) == OpenUpload(metadata=Metadata(name="x"))


def test_unknown_fields_are_ignored() -> None:
    assert decoded(type="watch", id=ID, later={"x": [1, 2.5, None]}) == Watch(id=ID)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "read"},
        {"type": "read", "id": 7},
        {"type": "read", "id": ID, "start": "7"},
        {"type": "read", "id": ID, "start": 7.0},
        {"type": "read", "id": ID, "start": True},
        {"type": "read", "id": ID, "start": 2**63},
        {"type": "read", "id": ID, "start": 10**30},
        {"type": "read", "id": ID, "start": [7]},
        {"type": "read", "id": ID, "window": -1},
        {"type": "read", "id": ID, "window": MAX_OFFSET + 1},
        {"type": "read", "id": ID, "start": float("nan")},
        {"type": "list", "limit": 1, "created_from": float("inf")},
        {"type": "list", "limit": 1, "labels": ["a"]},
        {"type": "list", "limit": 1, "labels": {"a": 1}},
        {"type": "follow", "id": ID, "from_offset": 1, "last_lines": 1},
        {"type": "window"},
        {"type": "window", "until": -1},
        {"type": "abort", "reason": 1},
        {"type": "abort", "reason": "\ud800"},
        {"type": "finish", "size": 1, "head": "0" * 31},
        {"type": "finish", "size": 1, "head": "A" * 32},
        {"type": "finish", "size": 1, "head": " " * 32},
        {"type": "finish", "size": 1, "head": 0},
        {"type": "finish", "size": -1, "head": "0" * 32},
        {"type": "get_heads", "id": ID, "sizes": 1},
        {"type": "get_heads", "id": ID, "sizes": [True]},
        {"type": "get_heads", "id": ID},
        {"type": "open_upload"},
        {"type": "open_upload", "metadata": []},
        {"type": "open_upload", "metadata": {"name": "x", "content_type": "text/plain", "lines": 1}},
        {"type": "open_upload", "metadata": {"name": "x", "content_type": "a/b"}, "sha256": "00"},
        {"type": "open_upload", "metadata": {"name": "x", "content_type": "a/b"}, "length": MAX_OFFSET + 1},
        {"type": "open_upload", "metadata": {"name": "x", "content_type": "a/b"}, "length": 2**64},
        {"type": "reopen_upload", "id": ID},
        {"type": "create_context", "attributes": {"a": 1}},
        {"type": "watch_context", "id": ID, "after": -1},
        {"type": "watch_context", "after": 1},
        {"type": "close_context"},
        {"type": "watch", "id": ID, "trace": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        {"type": "watch", "id": ID, "trace": {"traceparent": 1}},
        {"type": "hello"},
        {"type": "opened"},
        {"type": "x" * 1000},
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
        ({"type": "open_upload", "metadata": {"name": "", "content_type": "text/plain"}}, "name"),
        ({"type": "open_upload", "metadata": {"name": "a\nb", "content_type": "text/plain"}}, "name"),
        ({"type": "open_upload", "metadata": {"name": "a", "content_type": "text"}}, "content_type"),
        ({"type": "open_upload", "metadata": {"name": "x"}, "visibility": "secret"}, "visibility"),
        ({"type": "list", "limit": 1, "state": "DONE"}, "state"),
        ({"type": "list", "limit": 1, "labels": {str(number): "" for number in range(65)}}, "labels"),
        ({"type": "list", "limit": 1, "labels": {"": "x"}}, "labels"),
        ({"type": "locate", "id": ID}, "locate"),
        ({"type": "locate", "id": ID, "line": 1, "offset": 1}, "locate"),
    ],
)
def test_values_that_the_model_refuses_are_invalid_arguments(fields: dict[str, object], field: str) -> None:
    with pytest.raises(Malformed) as caught:
        decode_from_client(json.dumps({"request": 12, **fields}))
    error = caught.value.error
    assert isinstance(error, InvalidArgument)
    assert error.field == field


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Read(id=ID, start=-(2**70), end=2**70), Read(id=ID, start=-(2**63), end=2**63 - 1)),
        (Read(id=ID, suffix=2**63), Read(id=ID, suffix=2**63 - 1)),
        (Follow(id=ID, start=FromOffset(2**70)), Follow(id=ID, start=FromOffset(2**63 - 1))),
        (Follow(id=ID, start=LastBytes(2**70)), Follow(id=ID, start=LastBytes(2**63 - 1))),
        (Follow(id=ID, start=LastLines(-(2**70))), Follow(id=ID, start=LastLines(-(2**63)))),
        (ReadLines(id=ID, first=2**70, count=2**70), ReadLines(id=ID, first=2**63 - 1, count=2**63 - 1)),
        (ReadLines(id=ID, last=2**70), ReadLines(id=ID, last=2**63 - 1)),
        (Locate(id=ID, line=2**70), Locate(id=ID, line=2**63 - 1)),
        (Locate(id=ID, offset=-(2**70)), Locate(id=ID, offset=-(2**63))),
        (GetHeads(id=ID, sizes=(1, 2**70)), GetHeads(id=ID, sizes=(1, 2**63 - 1))),
        (List(filter=ListFilter(), limit=2**70), List(filter=ListFilter(), limit=2**63 - 1)),
    ],
)
def test_places_outside_the_wire_stay_outside_every_resource(message: ClientMessage, expected: ClientMessage) -> None:
    assert decode_from_client(encode_from_client(12, message)).message == expected


@pytest.mark.parametrize(
    "message",
    [
        OpenUpload(metadata=Metadata(name="a"), idempotency_key="\ud800"),
        GetStatus(id=ID, token="\ud800"),
        OpenBulk(collection="a", content_type="\udfff"),
    ],
)
def test_values_without_utf8_are_not_sent_as_others(message: ClientMessage) -> None:
    with pytest.raises(InvalidArgument, match="half of a surrogate pair"):
        encode_from_client(12, message)


@pytest.mark.parametrize("wrong", [{"state": "PAUSED"}, {"metadata": {"name": "a\nb"}}, {"visibility": "secret"}])
def test_values_that_the_model_refuses_are_mistakes_of_a_server(wrong: dict[str, object]) -> None:
    fields = json.loads(encode_from_server(12, STATUS))
    fields["status"].update(wrong)
    with pytest.raises(Malformed) as caught:
        decode_from_server(json.dumps(fields))
    assert caught.value.request == 12
    assert isinstance(caught.value.error, ProtocolError)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        '"watch"',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"request":1}',
        '{"type":"watch"}',
        '{"type":7,"request":1}',
        '{"type":"authenticate"}',
        '{"type":"authenticate","request":1,"token":7}',
        '{"type":"watch","request":0}',
        '{"type":"watch","request":-1}',
        '{"type":"watch","request":4294967296}',
        '{"type":"watch","request":true}',
        '{"type":"watch","request":"1"}',
        '{"type":"watch","request":1e0}',
        '{"type":"watch","request":NaN}',
        '{"type":"watch","request":1,"request":1}',
        '{"type":"watch","request":1} {}',
        "{'type':'watch'}",
        "\ufeff{}",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_message_without_a_request_is_one_of_the_connection(text: str) -> None:
    # Only a client authenticates itself.
    decoders = (decode_from_client,) if "authenticate" in text else (decode_from_client, decode_from_server)
    for decode in decoders:
        with pytest.raises(Malformed) as caught:
            decode(text)
        assert caught.value.request is None
        assert isinstance(caught.value.error, ProtocolError)


def test_unknown_type_is_unsupported() -> None:
    for decode in (decode_from_client, decode_from_server):
        with pytest.raises(Malformed) as caught:
            decode('{"type":"teleport","request":3}')
        assert caught.value.request == 3
        assert isinstance(caught.value.error, Unsupported)


def test_hello_of_another_version_is_unsupported() -> None:
    with pytest.raises(Malformed) as caught:
        decode_from_server('{"type":"hello","protocol":2}')
    assert isinstance(caught.value.error, Unsupported)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x01" * 31,
        b"\x02" * 15,
        b"\x03" * 15,
        b"\x00" * 40,
        b"\x04" + b"\x01" * 40,
        *(bytes((layout,)) + bytes(40) for layout in (1, 2, 3)),
    ],
    ids=["empty", *(f"short {layout}" for layout in (1, 2, 3)), "layout 0", "layout 4", *(f"0 {n}" for n in (1, 2, 3))],
)
def test_frame_that_names_no_request(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        frame_request(frame)


def damaged(**bytes_at: int) -> bytes:
    frame = bytearray(frame_chunk(1, Chunk(0, b"data", bytes(8), b"")))
    for position, value in bytes_at.items():
        frame[int(position.removeprefix("at_"))] = value
    return bytes(frame)


@pytest.mark.parametrize(
    "frame",
    [
        damaged(at_1=4),
        damaged(at_1=0x81),
        damaged(at_2=1),
        damaged(at_3=1),
        damaged(at_8=0xFF),
        damaged()[:HEADER_SIZE],
        # The checkpoint takes up what would be data.
        damaged(at_1=3) + bytes(CHECKPOINT_SIZE - 4),
    ],
)
def test_frame_that_is_no_chunk(frame: bytes) -> None:
    assert frame_request(frame) == 1
    with pytest.raises(ProtocolError):
        parse_chunk(frame)


def test_frame_that_is_too_large() -> None:
    with pytest.raises(MessageTooLarge) as caught:
        parse_chunk(damaged() + bytes(MAX_FRAME_SIZE))
    assert caught.value.maximum == MAX_FRAME_SIZE


@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(json.dumps)
)
def test_garbage_raises_nothing_else(text: str) -> None:
    with suppress(Malformed):
        decode_from_client(text)
    with suppress(Malformed):
        decode_from_server(text)


@given(st.data(), numbers, client_messages)
def test_changed_messages_raise_nothing_else(data: st.DataObject, number: int, message: ClientMessage) -> None:
    fields = json.loads(encode_from_client(number, message))
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()) | st.just({}))
    with suppress(Malformed):
        decode_from_client(json.dumps(fields))


@given(st.binary(max_size=100))
def test_garbage_frames_raise_nothing_else(frame: bytes) -> None:
    with suppress(TailraceError):
        frame_request(frame)
        parse_chunk(frame)


# Limits of what is sent


def test_control_message_that_is_too_large_is_refused_before_it_is_sent() -> None:
    with pytest.raises(MessageTooLarge) as caught:
        encode_from_client(1, Abort("ü" * MAX_TEXT_SIZE))
    assert caught.value.maximum == MAX_TEXT_SIZE
    assert caught.value.size > 2 * MAX_TEXT_SIZE


@settings(max_examples=3, deadline=None)
@given(statuses)
def test_page_that_is_too_large_is_refused_before_it_is_sent(status: Status) -> None:
    with pytest.raises(MessageTooLarge):
        encode_from_server(1, Listed(Page((status,) * 5000, None)))


def test_text_without_utf_8_is_sent_with_replacements() -> None:
    text = encode_from_client(1, Abort("name \udcff"))
    assert decode_from_client(text).message == Abort("name ?")
