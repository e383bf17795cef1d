"""PROTOCOL.md says what the code does: the gRPC binding."""

from __future__ import annotations

import re
import typing

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from protocol_document import (
    FIRST,
    FIRST_CHUNK,
    ROOT,
    SECOND,
    SECOND_CHUNK,
    SECOND_CHUNK_READ,
    blocks,
    from_hex,
    prose,
    quoted,
    section,
    table,
)

from tailrace_common_api import (
    DIGEST_SIZE,
    MAX_KEY_SIZE,
    BulkRefused,
    BulkResult,
    Checkpoint,
    Metadata,
    ProblemKind,
    QueuedRecord,
    QueueFigures,
    RangeNotSatisfiable,
    RecordBatch,
    RecordLimits,
    RecordProblem,
    Settlement,
    Unsupported,
    record_problems,
    refused_records,
)
from tailrace_impl_common import (
    MessageChainSender,
    _serve_download,
    head_of,
    messages,
    record_messages,
)
from tailrace_impl_grpc import _address as grpc_address
from tailrace_impl_grpc import _codec as grpc_codec
from tailrace_impl_grpc import _codec_records as grpc_records
from tailrace_impl_grpc import _codec_values as grpc_values
from tailrace_impl_grpc import _error_table as grpc_errors
from tailrace_impl_grpc._chunk_frame import frame_chunk as frame_grpc_chunk
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb
from tailrace_impl_grpc.records import IDEMPOTENCY_KEY
from tailrace_impl_server import ServerSettings

PROTO = ROOT / "packages/impl-grpc/src/tailrace_impl_grpc/_proto/v1/tailrace.proto"


def test_proto_file() -> None:
    def stripped(text: str) -> list[str]:
        return [line for line in re.sub(r"//.*", "", text).split() if line]

    assert stripped(blocks(section("10"), "proto")[0]) == stripped(PROTO.read_text())


def test_grpc_methods() -> None:
    kinds = {(True, True): "bidirectional", (False, True): "server-streaming", (False, False): "unary"}
    written = {
        (quoted(row["service"])[0], quoted(row["method"])[0]): (
            row["kind"],
            quoted(row["client messages"])[0],
            quoted(row["server messages"])[0],
        )
        for row in table("4.1", "service")
    }
    assert written == {
        (service.full_name, method.name): (
            kinds[method.client_streaming, method.server_streaming],
            method.input_type.name,
            method.output_type.name,
        )
        for service in pb.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    for row in table("4.1", "service"):
        for request in quoted(row["begins with"]):
            method = grpc_codec._METHODS[getattr(messages, request, None) or getattr(record_messages, request)]
            assert [f"`{method.service}`", f"`{method.name}`"] == [row["service"], row["method"]]
    assert f"without a port, {grpc_address.DEFAULT_PORT} is" in prose("4.1")


def test_fields_in_the_proto_file_bear_the_names_of_the_messages() -> None:
    for name in (
        "Status",
        "Metadata",
        "Limits",
        "Chunk",
        "Checkpoint",
        "Window",
        "Finish",
        "Abort",
        "Finished",
        "Opened",
    ):
        cls = getattr(messages, name, None) or Metadata
        assert {field.name for field in pb.DESCRIPTOR.message_types_by_name[name].fields} == set(
            typing.get_type_hints(cls)
        )
    chunk = pb.DESCRIPTOR.message_types_by_name["Chunk"].fields
    assert max(chunk, key=lambda field: field.number).name == "data"
    opening = pb.DESCRIPTOR.message_types_by_name["OpenFollow"]
    assert [field.name for field in opening.oneofs_by_name["start"].fields] == ["offset", "last_bytes", "last_lines"]
    signed = {"start", "end", "suffix", "first", "count", "last", "sizes", "line", "limit"}
    for name in ("OpenRead", "OpenFollow", "OpenReadLines", "HeadsRequest", "LocateRequest", "ListRequest"):
        for field in pb.DESCRIPTOR.message_types_by_name[name].fields:
            if field.name in signed or field.name == "offset":
                assert field.type == FieldDescriptor.TYPE_INT64


def test_grpc_examples() -> None:
    dumps = [from_hex(block) for block in blocks(section("4.2"), "hex")]
    uploaded, _, read, news = dumps
    assert dumps[:-1] == [frame_grpc_chunk(chunk) for chunk in (FIRST_CHUNK, SECOND_CHUNK, SECOND_CHUNK_READ)]
    assert pb.UploadRequest.FromString(uploaded).chunk.data == FIRST
    assert pb.DownloadResponse.FromString(uploaded).chunk.data == FIRST
    chunk = pb.DownloadResponse.FromString(read).chunk
    assert (chunk.offset, chunk.checkpoint.size, chunk.checkpoint.newlines) == (10, 18, 2)
    told: list[messages.ServerMessage] = [Checkpoint(10, 1, head_of(FIRST)), messages.Window(4_194_314)]
    assert grpc_codec.UPLOAD.decode_response(news) == told
    assert grpc_values.join_responses(map(grpc_codec.UPLOAD.encode_response, told)) == news


def test_messages_to_readers_may_come_together() -> None:
    found = pb.DESCRIPTOR.message_types_by_name["DownloadResponse"]
    (fields,) = re.findall(r"and `DownloadResponse` one or more of ([^.]*)\.", prose("4.2"))
    assert sorted(quoted(fields)) == sorted(field.name for field in found.fields)
    assert not found.oneofs
    together = prose("4.2").partition("**Messages that come together.**")[2]
    assert f"an answer of up to {_serve_download._LARGEST_TOGETHER // 1024} KiB" in together
    status = pb.Status(state=pb.RESOURCE_STATE_COMPLETED, head=head_of(b""), metadata=pb.Metadata(name="a"))
    parts = [pb.DownloadResponse(end=pb.End(status=status)), pb.DownloadResponse(started=pb.Started(status=status))]
    several = grpc_codec.READ.decode_response(b"".join(part.SerializeToString() for part in parts))
    assert isinstance(several, list)
    assert [type(message) for message in several] == [messages.Started, messages.End]
    with pytest.raises(Unsupported):
        grpc_codec.READ.decode_response(b"")


def test_messages_to_uploaders_may_come_together() -> None:
    found = pb.DESCRIPTOR.message_types_by_name["UploadResponse"]
    (fields,) = re.findall(r"`UploadResponse` has one or more of the fields ([^.]*), and ", prose("4.2"))
    assert quoted(fields) == [field.name for field in found.fields]
    assert not found.oneofs
    together = pb.UploadResponse(window=pb.Window(until=9), checkpoint=pb.Checkpoint(size=3, head=head_of(b"abc")))
    assert grpc_codec.UPLOAD.decode_response(together.SerializeToString()) == [
        Checkpoint(3, 0, head_of(b"abc")),
        messages.Window(9),
    ]
    with pytest.raises(Unsupported):
        grpc_codec.UPLOAD.decode_response(b"")


def test_grpc_error_example() -> None:
    error = grpc_values.decode_error(from_hex(blocks(section("4.3"), "hex")[0]))
    expected = RangeNotSatisfiable(start=0, end=100, size=18)
    assert (type(error), error.message, error.details()) == (type(expected), expected.message, expected.details())
    assert f"`{grpc_errors.ERROR_KEY}`" in section("4.3")
    text = prose("4.3")
    assert f"cut to {grpc_errors._MAX_STATUS_MESSAGE} bytes of UTF-8" in text
    assert f"cut to {grpc_values._MAX_ERROR_TEXT:,} bytes of UTF-8" in text


def test_statuses_that_are_not_ours() -> None:
    written = {
        quoted(row["gRPC status without the entry"])[0]: quoted(row["treat as"])[0]
        for row in table("4.3", "gRPC status without the entry")
    }
    assert written == {status.name: code for status, code in grpc_errors._CODE_OF_STATUS.items()}
    assert set(written) == {status.name for status in grpc.StatusCode} - {"OK"}


def test_chain_in_messages_of_other_services() -> None:
    def build(data: bytes, previous: bytes) -> tuple[str, str]:
        return data.decode().replace("\n", "\\n"), previous.hex()

    sent = list(MessageChainSender(build).messages([FIRST, SECOND]))
    rows = table("4.5", "message")
    assert sent == [("".join(quoted(row["bytes"])), "".join(quoted(row["hash of the chunk before"]))) for row in rows]


def test_messages_about_records_are_fields_of_a_oneof() -> None:
    written = [
        (quoted(row["message"])[0], quoted(row["field of"])[0], *quoted(row["field"]))
        for row in table("4.6", "message")
    ]
    wrappers = [pb.DESCRIPTOR.message_types_by_name[name] for name in dict.fromkeys(name for _, name, *_ in written)]
    found = []
    for wrapper in wrappers:
        for field in wrapper.oneofs_by_name["message"].fields:
            assert field.message_type is not None
            found.append((wrapper.name, field.name, field.message_type.name))
    assert [(name, field, type_) for _, name, field, type_ in written] == found
    for method, begin in (("Bulk", "OpenBulk"), ("Query", "Query"), ("Work", "Work")):
        called = pb.DESCRIPTOR.services_by_name["Records"].methods_by_name[method]
        assert (begin, called.input_type.name, "open") in {row[:3] for row in written}
        assert called.output_type.name in {row[1] for row in written}
    for message, _, _, type_ in written:
        cls = getattr(messages, message, None) or getattr(record_messages, message)
        fields = {field.name for field in pb.DESCRIPTOR.message_types_by_name[type_].fields}
        if message == "Deliveries":
            assert fields == {"ids", "attempts", "priorities", "data", "keys"}
            assert set(
                quoted(prose("4.6").partition("`Deliveries` are the same with")[2].partition("each with")[0])
            ) == (fields - {"data", "keys"})
        else:
            assert fields == set(typing.get_type_hints(cls)), message


@pytest.mark.parametrize("cls", [BulkResult, RecordLimits, QueueFigures, Settlement], ids=lambda cls: cls.__name__)
def test_values_of_records_bear_the_names_of_their_fields(cls: type) -> None:
    descriptor = pb.DESCRIPTOR.message_types_by_name[cls.__name__]
    assert [field.name for field in descriptor.fields] == list(typing.get_type_hints(cls))


def test_examples_of_records_over_grpc() -> None:
    records, deliveries = [from_hex(block) for block in blocks(section("4.6"), "hex")]
    batch = RecordBatch([b'{"n":10}', b'{"n":20}', b'{"n":333}'], [None, "k2", None])
    assert records == grpc_codec.BULK.encode_request(batch) == grpc_codec.QUERY.encode_response(batch)
    handed = record_messages.Deliveries((QueuedRecord(id=41, attempt=1, priority=5, data=b'{"n":10}'),))
    assert deliveries == grpc_codec.WORK.encode_response(handed)


def test_rules_of_records_over_grpc() -> None:
    text = prose("4.6")
    assert f"is at most {grpc_codec.MAX_DATA_MESSAGE:,} bytes when encoded" in text
    assert f"every other message is at most {grpc_codec.MAX_CONTROL_MESSAGE:,}" in text
    assert f"more than {record_messages.MESSAGE_RECORDS:,}, keys above {MAX_KEY_SIZE} bytes" in text
    assert f"a digest that has not {DIGEST_SIZE} bytes" in text
    assert f"a reason of more than {grpc_records.MAX_REASON:,} characters" in text
    assert f"is at most {grpc_values._MAX_PROBLEMS:,} bytes here" in text
    assert f"cut to {grpc_values._MAX_PROBLEM_TEXT} characters" in text
    assert f"metadata entry `{IDEMPOTENCY_KEY}`" in prose("4.7")
    problems = [RecordProblem(index=i, kind=ProblemKind.INVALID, field=None, problem="x" * 300) for i in range(100)]
    _, _, metadata = grpc_errors.error_to_status(refused_records(problems, 1000))
    cut = grpc_errors.sent_error(metadata)
    assert isinstance(cut, BulkRefused)
    assert (len(cut.problems) <= grpc_values._MAX_PROBLEMS, cut.total) == (True, 1000)
    assert {len(problem.problem) for problem in record_problems(cut)} == {grpc_values._MAX_PROBLEM_TEXT}
    assert f"{ServerSettings().bulk_window // 2**20} MiB by default" in text
