"""PROTOCOL.md says what the code does: the gRPC binding."""

from __future__ import annotations

import re
import typing

import grpc
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
    Metadata,
    RangeNotSatisfiable,
)
from tailrace_impl_common import (
    MessageChainSender,
    messages,
    record_messages,
)
from tailrace_impl_grpc import _client as grpc_client
from tailrace_impl_grpc import _codec as grpc_codec
from tailrace_impl_grpc import _codec_values as grpc_values
from tailrace_impl_grpc import _error_table as grpc_errors
from tailrace_impl_grpc._chunk_frame import frame_chunk as frame_grpc_chunk
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb

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
    assert f"without a port, {grpc_client.DEFAULT_PORT} is" in prose("4.1")


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
    assert dumps == [frame_grpc_chunk(chunk) for chunk in (FIRST_CHUNK, SECOND_CHUNK, SECOND_CHUNK_READ)]
    uploaded, _, read = dumps
    assert pb.UploadRequest.FromString(uploaded).chunk.data == FIRST
    assert pb.DownloadResponse.FromString(uploaded).chunk.data == FIRST
    chunk = pb.DownloadResponse.FromString(read).chunk
    assert (chunk.offset, chunk.checkpoint.size, chunk.checkpoint.newlines) == (10, 18, 2)


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
