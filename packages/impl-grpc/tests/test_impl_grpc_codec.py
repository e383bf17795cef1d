from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from impl_grpc_messages import (
    checkpoints,
    chunks,
    context_closings,
    context_creations,
    context_events,
    context_requests,
    context_watches,
    contexts,
    deletes,
    ends,
    filters,
    follows,
    head_answers,
    head_requests,
    line_reads,
    listed,
    lists,
    located,
    locates,
    messages_to_reader,
    messages_to_uploader,
    reads,
    started,
    status_requests,
    statuses,
    uploader_messages,
    watches,
    windows,
)

from tailrace_common_api import (
    MAX_OFFSET,
    Checkpoint,
    InvalidArgument,
    ListFilter,
    MessageTooLarge,
    Metadata,
    ProtocolError,
    TailraceError,
    Unsupported,
)
from tailrace_impl_common import MAX_CHUNK_SIZE, chunk_hash, messages
from tailrace_impl_common.messages import Abort, Chunk, Done, End, List, OpenUpload, Read, Started, Window
from tailrace_impl_grpc import _codec
from tailrace_impl_grpc._chunk_frame import frame_checkpoint, frame_chunk, parse_chunk
from tailrace_impl_grpc._codec import MAX_CONTROL_MESSAGE, MAX_DATA_MESSAGE, Method, encode_chunk
from tailrace_impl_grpc._codec_values import join_responses
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb

METHODS = (*_codec.CONVERSATIONS, *_codec.WATCHES, *_codec.ANSWERS)


def generated_checkpoint(checkpoint: Checkpoint) -> pb.Checkpoint:
    return pb.Checkpoint(size=checkpoint.size, newlines=checkpoint.newlines, head=checkpoint.head)


def generated(chunk: Chunk) -> pb.Chunk:
    checkpoint = None if chunk.checkpoint is None else generated_checkpoint(chunk.checkpoint)
    return pb.Chunk(
        offset=chunk.offset,
        hash=chunk.hash,
        previous=chunk.previous,
        checkpoint=checkpoint,
        data=bytes(chunk.data),
    )


@given(chunks)
def test_framed_chunk_is_what_the_generated_classes_write(chunk: Chunk) -> None:
    expected = pb.UploadRequest(chunk=generated(chunk)).SerializeToString()
    assert frame_chunk(chunk) == expected
    fields, data = encode_chunk(chunk)
    assert data is chunk.data
    assert fields + data == expected
    assert pb.DownloadResponse(chunk=generated(chunk)).SerializeToString() == expected


@given(checkpoints | st.builds(Checkpoint, st.integers(0, 2**64 - 1), st.just(0), st.binary(max_size=300)))
def test_framed_checkpoint_is_what_the_generated_classes_write(checkpoint: Checkpoint) -> None:
    expected = pb.UploadResponse(checkpoint=generated_checkpoint(checkpoint)).SerializeToString()
    assert frame_checkpoint(checkpoint) == _codec.UPLOAD.encode_response(checkpoint) == expected


@pytest.mark.parametrize("number", [-1, 2**64])
def test_numbers_that_do_not_fit_are_not_framed(number: int) -> None:
    checkpoint = Checkpoint(number, 0, b"h" * 16)
    with pytest.raises(ValueError, match="not within 64 bits"):
        frame_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="not within 64 bits"):
        frame_chunk(Chunk(0, b"data", b"h" * 8, b"", checkpoint))
    with pytest.raises(ValueError, match="not within 64 bits"):
        frame_chunk(Chunk(number, b"data", b"h" * 8, b""))
    with pytest.raises(InvalidArgument, match="not within 64 bits"):
        encode_chunk(Chunk(number, b"data", b"h" * 8, b""))


@given(chunks)
def test_generated_chunk_is_parsed_without_copying(chunk: Chunk) -> None:
    wire = pb.UploadRequest(chunk=generated(chunk)).SerializeToString()
    parsed = parse_chunk(wire)
    assert parsed == chunk
    assert isinstance(parsed.data, memoryview)
    assert parsed.data.obj is wire


def test_largest_chunk_fits_into_the_limit_and_is_copied_once() -> None:
    data = memoryview(bytearray(MAX_CHUNK_SIZE))
    chunk = Chunk(2**53 - 1, data, chunk_hash(data), b"p" * 8, messages.Checkpoint(2**53 - 1, 2**53 - 1, b"h" * 16))
    wire = _codec.UPLOAD.encode_request(chunk)
    assert len(wire) <= MAX_DATA_MESSAGE
    parsed = _codec.UPLOAD.decode_request(wire)
    assert parsed == chunk


@given(st.permutations(["offset", "hash", "previous", "checkpoint", "data"]), chunks)
def test_other_field_orders_and_unknown_fields_are_understood(order: list[str], chunk: Chunk) -> None:
    parts = {
        "offset": pb.Chunk(offset=chunk.offset).SerializeToString(),
        "hash": pb.Chunk(hash=chunk.hash).SerializeToString(),
        "previous": pb.Chunk(previous=chunk.previous).SerializeToString(),
        "checkpoint": pb.Chunk(checkpoint=generated(chunk).checkpoint).SerializeToString() if chunk.checkpoint else b"",
        "data": pb.Chunk(data=bytes(chunk.data)).SerializeToString(),
    }
    unknown = b"\xf8\x7f\x05"
    inner = unknown + b"".join(parts[name] for name in order)
    wire = b"\x1a" + _varint(len(inner)) + inner
    assert parse_chunk(wire) is None
    assert _codec.UPLOAD.decode_request(wire) == chunk
    assert _codec.READ.decode_response(wire) == chunk


def _varint(value: int) -> bytes:
    # The generated classes are the reference for numbers too.
    return pb.Window(until=value).SerializeToString()[1:] or b"\0"


@given(chunks, st.data())
def test_damaged_frames_are_refused_or_read_as_generated_classes_do(chunk: Chunk, data: st.DataObject) -> None:
    wire = bytearray(frame_chunk(chunk))
    header = min(len(wire), 60)
    for position in data.draw(st.lists(st.integers(0, header - 1), min_size=1, max_size=3)):
        wire[position] = data.draw(st.integers(0, 255))
    wire = wire[: data.draw(st.integers(0, len(wire)))] if data.draw(st.booleans()) else wire
    parsed = parse_chunk(bytes(wire))
    if parsed is not None:
        message = pb.UploadRequest.FromString(bytes(wire))
        assert message.WhichOneof("message") == "chunk"
        assert generated(parsed) == message.chunk


def test_every_damaged_byte_before_the_data_is_refused_or_read_as_generated_classes_do() -> None:
    chunk = Chunk(300, b"data" * 40, b"h" * 8, b"p" * 8, Checkpoint(300, 2, b"c" * 16))
    whole = frame_chunk(chunk)
    parsed = 0
    for position in range(len(whole) - len(chunk.data)):
        for value in range(256):
            wire = whole[:position] + bytes([value]) + whole[position + 1 :]
            found = parse_chunk(wire)
            if found is not None:
                parsed += 1
                assert generated(found) == pb.UploadRequest.FromString(wire).chunk
    # Those that are still a chunk have another number or hash.
    assert parsed > 1000


@given(st.permutations([0, 1, 2]), st.sets(st.integers(0, 2), min_size=2), started, chunks, ends)
def test_messages_to_readers_may_be_one_message_in_any_order(
    order: list[int], held: set[int], first: Started, chunk: Chunk, last: End
) -> None:
    messages = (first, chunk, last)
    wire = b"".join(_codec.READ.encode_response(messages[index]) for index in order if index in held)
    assert _codec.READ.decode_response(wire) == [messages[index] for index in sorted(held)]


@given(started, chunks, ends)
def test_joined_messages_are_in_the_order_of_their_numbers(first: Started, chunk: Chunk, last: End) -> None:
    beginning, data, ending = (_codec.FOLLOW.encode_response(message) for message in (first, chunk, last))
    assert join_responses([beginning, data, ending]) == beginning + ending + data
    assert join_responses([beginning, ending]) == beginning + ending
    assert join_responses([ending]) == ending


def test_endless_number_is_refused_at_once() -> None:
    wire = b"\x1a" + b"\xff" * (3 * 1024 * 1024)
    assert parse_chunk(wire) is None
    with pytest.raises(ProtocolError, match="malformed UploadRequest"):
        _codec.UPLOAD.decode_request(wire)


def request_cases(*cases: tuple[Method, st.SearchStrategy[Any]]) -> st.SearchStrategy[tuple[Method, Any]]:
    return st.one_of([st.tuples(st.just(method), strategy) for method, strategy in cases])


@given(
    request_cases(
        (_codec.UPLOAD, uploader_messages),
        (_codec.READ, reads | windows),
        (_codec.FOLLOW, follows | windows),
        (_codec.READ_LINES, line_reads | windows),
        (_codec.WATCH, watches),
        (_codec.GET_STATUS, status_requests),
        (_codec.HEADS, head_requests),
        (_codec.LOCATE, locates),
        (_codec.LIST, lists),
        (_codec.DELETE, deletes),
        (_codec.CREATE_CONTEXT, context_creations),
        (_codec.GET_CONTEXT, context_requests),
        (_codec.CLOSE_CONTEXT, context_closings),
        (_codec.WATCH_CONTEXT, context_watches),
    )
)
def test_requests_survive_the_wire(case: tuple[Method, Any]) -> None:
    method, message = case
    assert method.decode_request(method.encode_request(message)) == message
    if not isinstance(message, Chunk | Window | messages.Finish | Abort):
        assert _codec.method_of(message) is method


@given(
    request_cases(
        (_codec.UPLOAD, messages_to_uploader),
        (_codec.READ, messages_to_reader),
        (_codec.FOLLOW, messages_to_reader),
        (_codec.READ_LINES, messages_to_reader),
        (_codec.WATCH, statuses),
        (_codec.GET_STATUS, statuses),
        (_codec.HEADS, head_answers),
        (_codec.LOCATE, located),
        (_codec.LIST, listed),
        (_codec.DELETE, st.just(Done())),
        (_codec.CREATE_CONTEXT, contexts),
        (_codec.GET_CONTEXT, contexts),
        (_codec.CLOSE_CONTEXT, contexts),
        (_codec.WATCH_CONTEXT, context_events),
    )
)
def test_responses_survive_the_wire(case: tuple[Method, Any]) -> None:
    method, message = case
    assert method.decode_response(method.encode_response(message)) == message


@given(filters)
def test_filters_survive_with_defaults(filter: ListFilter) -> None:
    message = List(filter=filter, limit=1)
    assert _codec.LIST.decode_request(_codec.LIST.encode_request(message)) == message


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@given(data=st.binary(max_size=200))
def test_any_bytes_give_a_message_or_a_typed_error(method: Method, data: bytes) -> None:
    with suppress(TailraceError):
        method.decode_request(data)
    with suppress(ProtocolError):
        method.decode_response(data)


@pytest.mark.parametrize("method", _codec.CONVERSATIONS, ids=lambda method: method.name)
def test_unknown_kinds_are_unsupported(method: Method) -> None:
    # Field 100, which no message has: what a later version might send.
    wire = b"\xa2\x06\x01x"
    with pytest.raises(Unsupported, match=r"Request of a kind"):
        method.decode_request(wire)
    with pytest.raises(Unsupported, match=r"Response of a kind"):
        method.decode_response(wire)


def test_values_outside_the_wire_are_the_callers_fault() -> None:
    with pytest.raises(InvalidArgument, match="Window: "):
        _codec.READ.encode_request(Window(-1))
    with pytest.raises(InvalidArgument, match="Read: "):
        _codec.READ.encode_request(Read(id="\ud800"))
    with pytest.raises(InvalidArgument, match=r"Chunk: .* not within 64 bits"):
        _codec.UPLOAD.encode_request(Chunk(2**64, b"x", b"h" * 8, b""))


def test_a_declared_length_is_that_of_a_resource() -> None:
    for length in (0, MAX_OFFSET):
        wire = pb.UploadRequest(open=pb.OpenUpload(metadata=pb.Metadata(name="a"), length=length)).SerializeToString()
        request = _codec.UPLOAD.decode_request(wire)
        assert isinstance(request, OpenUpload)
        assert request.length == length
    for length in (MAX_OFFSET + 1, 2**64 - 1):
        wire = pb.UploadRequest(open=pb.OpenUpload(metadata=pb.Metadata(name="a"), length=length)).SerializeToString()
        with pytest.raises(ProtocolError, match="'length' is above"):
            _codec.UPLOAD.decode_request(wire)


def test_places_outside_the_wire_stay_outside_every_resource() -> None:
    wire = _codec.READ.encode_request(Read(id="x", start=-(2**70), end=2**70))
    assert _codec.READ.decode_request(wire) == Read(id="x", start=-(2**63), end=2**63 - 1)


def test_bad_metadata_is_an_invalid_argument_of_the_client_and_a_protocol_error_of_the_server() -> None:
    wire = pb.UploadRequest(open=pb.OpenUpload(metadata=pb.Metadata(name="a\nb"))).SerializeToString()
    with pytest.raises(InvalidArgument, match="control character"):
        _codec.UPLOAD.decode_request(wire)
    with pytest.raises(ProtocolError, match="cannot be accepted"):
        _codec.GET_STATUS.decode_response(pb.Status(state=pb.RESOURCE_STATE_FAILED, head=b"h" * 16).SerializeToString())


def test_unspecified_values_have_their_defaults() -> None:
    wire = pb.UploadRequest(open=pb.OpenUpload(metadata=pb.Metadata(name="a"))).SerializeToString()
    assert _codec.UPLOAD.decode_request(wire) == OpenUpload(metadata=Metadata(name="a"))


def test_listing_with_too_many_labels_is_refused() -> None:
    wire = pb.ListRequest(labels={str(number): "" for number in range(65)}, limit=1).SerializeToString()
    with pytest.raises(InvalidArgument, match="labels: 65 labels; at most 64"):
        _codec.LIST.decode_request(wire)


def test_unknown_states_and_kinds_of_contexts_are_refused() -> None:
    for wire, method in (
        (pb.Context(id="x").SerializeToString(), _codec.GET_CONTEXT),
        (pb.Context(id="x").SerializeToString() + b"\x18\x09", _codec.CLOSE_CONTEXT),
        (pb.ContextEvent(sequence=1).SerializeToString(), _codec.WATCH_CONTEXT),
        (pb.ContextEvent(sequence=1).SerializeToString() + b"\x18\x09", _codec.WATCH_CONTEXT),
    ):
        with pytest.raises(ProtocolError, match="is unknown"):
            method.decode_response(wire)


def test_unknown_enum_values_are_refused() -> None:
    opening = pb.OpenUpload(metadata=pb.Metadata(name="a"))
    wire = pb.UploadRequest(open=opening).SerializeToString()
    # Visibility 9, appended to the message inside.
    wire = wire[:1] + bytes([wire[1] + 2]) + wire[2:] + b"\x10\x09"
    with pytest.raises(InvalidArgument, match="visibility: 9 is unknown"):
        _codec.UPLOAD.decode_request(wire)


@pytest.mark.parametrize("field", ["hash", "previous"])
@pytest.mark.parametrize("length", [1, 7, 9])
def test_hashes_of_wrong_length_are_refused(field: str, length: int) -> None:
    chunk = pb.Chunk(data=b"data", hash=b"h" * 8, previous=b"p" * 8)
    setattr(chunk, field, b"x" * length)
    wire = pb.UploadRequest(chunk=chunk).SerializeToString()
    with pytest.raises(ProtocolError, match=f"hash of {length} bytes"):
        _codec.UPLOAD.decode_request(wire)


def test_sizes_are_limited_both_ways() -> None:
    chunk = Chunk(0, bytes(MAX_DATA_MESSAGE), b"h" * 8, b"")
    with pytest.raises(MessageTooLarge):
        _codec.UPLOAD.encode_request(chunk)
    with pytest.raises(MessageTooLarge):
        _codec.READ.encode_response(chunk)
    with pytest.raises(MessageTooLarge):
        encode_chunk(chunk)
    wire = frame_chunk(chunk)
    with pytest.raises(MessageTooLarge) as caught:
        _codec.UPLOAD.decode_request(wire)
    assert (caught.value.size, caught.value.maximum) == (len(wire), MAX_DATA_MESSAGE)
    with pytest.raises(MessageTooLarge):
        _codec.READ.decode_response(wire)
    small = _codec.READ.encode_response(Chunk(0, b"data", b"h" * 8, b""))
    # Unknown fields, which count: with a chunk as much as in a data message, without one no more than in any other.
    more = b"\xa2\x06" + _varint(MAX_CONTROL_MESSAGE) + bytes(MAX_CONTROL_MESSAGE)
    assert _codec.READ.decode_response(more + small) == _codec.READ.decode_response(small)
    with pytest.raises(MessageTooLarge):
        _codec.READ.decode_response(4 * more + small)
    with pytest.raises(MessageTooLarge) as caught:
        _codec.READ.decode_response(more)
    assert caught.value.maximum == MAX_CONTROL_MESSAGE
    reason = Abort("x" * MAX_CONTROL_MESSAGE)
    with pytest.raises(MessageTooLarge):
        _codec.UPLOAD.encode_request(reason)
    wire = pb.UploadRequest(abort=pb.Abort(reason=reason.reason)).SerializeToString()
    with pytest.raises(MessageTooLarge):
        _codec.UPLOAD.decode_request(wire)


def test_text_of_a_reason_is_made_encodable() -> None:
    wire = _codec.UPLOAD.encode_request(Abort("cannot read \udcff"))
    assert _codec.UPLOAD.decode_request(wire) == Abort("cannot read ?")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_messages_of_another_method_are_refused(method: Method) -> None:
    with pytest.raises(InvalidArgument):
        method.encode_request(Done())  # type: ignore[arg-type]  # the wrong message is the test
    with pytest.raises(TypeError):
        method.encode_response(messages.Watched())
