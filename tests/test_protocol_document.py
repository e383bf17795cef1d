"""PROTOCOL.md says what the code does: its tables, vectors and examples are read and compared with it."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor

from tailrace_common_api import (
    HEAD_SIZE,
    MAX_OFFSET,
    Checkpoint,
    InvalidArgument,
    Limits,
    Metadata,
    RangeNotSatisfiable,
    Reference,
    ResourceState,
    Status,
    TailraceError,
    Visibility,
    error_classes,
)
from tailrace_impl_common import (
    BLOCK_SIZE,
    HASH_SIZE,
    MAX_CHUNK_SIZE,
    HeadHasher,
    chunk_hash,
    head_of,
    messages,
)
from tailrace_impl_common._download_machine import DOWNLOAD_TRANSITIONS
from tailrace_impl_common._upload_machine import UPLOAD_TRANSITIONS, UploadReceiver
from tailrace_impl_common.messages import Chunk
from tailrace_impl_grpc import _client as grpc_client
from tailrace_impl_grpc import _codec as grpc_codec
from tailrace_impl_grpc import _codec_values as grpc_values
from tailrace_impl_grpc import _error_table as grpc_errors
from tailrace_impl_grpc._chunk_frame import frame_chunk as frame_grpc_chunk
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb
from tailrace_impl_websocket import _chunk_frame as websocket_frames
from tailrace_impl_websocket import _codec as websocket_codec
from tailrace_impl_websocket import _error_table as websocket_errors

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "PROTOCOL.md").read_text()
PROTO = ROOT / "packages/impl-grpc/src/tailrace_impl_grpc/_proto/v1/tailrace.proto"
VECTORS = ROOT / "packages/impl-common/tests/head_vectors.json"

Row = dict[str, str]

FIRST, SECOND = b"compiling\n", b"linking\n"
FIRST_CHUNK = Chunk(0, FIRST, chunk_hash(FIRST), b"")
SECOND_CHUNK = Chunk(len(FIRST), SECOND, chunk_hash(SECOND), chunk_hash(FIRST))
SECOND_CHUNK_READ = SECOND_CHUNK._replace(checkpoint=Checkpoint(18, 2, head_of(FIRST + SECOND)))
PATTERN = bytes(i % 251 for i in range(300_000))


# Reading the document


def section(number: str) -> str:
    """Return a section with its subsections, by the number in its heading."""
    depth = "#" * (2 + number.count("."))
    found = re.search(rf"^{depth} {re.escape(number)}\.? .*?(?=^#{{2,{len(depth)}}} |\Z)", DOCUMENT, re.M | re.S)
    assert found, number
    return found[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text: str) -> list[list[Row]]:
    """Return the tables of a text; each row by the names of its columns."""
    found: list[list[Row]] = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        header, _, *rows = block.splitlines()
        names = cells(header)
        found.append([dict(zip(names, cells(row), strict=True)) for row in rows])
    return found


def table(number: str, first_column: str) -> list[Row]:
    """Return the one table of a section whose first column has this name."""
    found = [rows for rows in tables(section(number)) if next(iter(rows[0])) == first_column]
    assert len(found) == 1, (number, first_column)
    return found[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def from_hex(block: str) -> bytes:
    """Return the bytes of an annotated dump: what stands behind two spaces or more within a line is annotation."""
    return bytes.fromhex("".join(re.split(r"(?<=\S) {2,}", line.strip())[0] for line in block.splitlines()))


def optional(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


# Words


def test_contents_and_references_to_sections_lead_somewhere() -> None:
    headings = re.findall(r"^#{2,3} ([\d.]+) (.*)$", DOCUMENT, re.M)
    anchors = [re.sub(r"[^\w\- ]", "", f"{number} {title}".lower()).replace(" ", "-") for number, title in headings]
    assert set(re.findall(r"\]\(#([^)]+)\)", DOCUMENT)) <= set(anchors)
    numbers = {number.rstrip(".") for number, _ in headings}
    cited = re.findall(r"(?<!, )\bsections? ([\d.]*\d)(?: and ([\d.]*\d))?", DOCUMENT)
    assert {number for pair in cited for number in pair if number} <= numbers


def test_head_vectors() -> None:
    written = table("1.5", "size")
    assert len(written) == len(json.loads(VECTORS.read_text())["vectors"])
    for row, vector in zip(written, json.loads(VECTORS.read_text())["vectors"], strict=True):
        size = int(row["size"])
        hasher = HeadHasher()
        hasher.update(PATTERN[:size])
        assert (size, int(row["full blocks"])) == (vector["size"], vector["blocks"]) == (hasher.size, hasher.blocks)
        assert quoted(row["spine"]) == [vector["spine"]] == [hasher.spine.hex()]
        assert "".join(quoted(row["digest of the open block"])) == vector["open_digest"] == hasher.open_digest().hex()
        assert quoted(row["head"]) == [vector["head"]] == [hasher.head().hex()]
    text = section("1.5")
    assert f"`compiling\\n` it is `{head_of(FIRST).hex()}`" in text.replace("\n", " ")
    assert f"`compiling\\nlinking\\n` it is `{head_of(FIRST + SECOND).hex()}`" in text.replace("\n", " ")
    assert f"{BLOCK_SIZE:,} bytes (128 KiB)" in text
    assert HEAD_SIZE == 16


def test_continuing_from_the_spine_and_the_open_block() -> None:
    first, middle, second, last, head = (quoted(row["value"])[0] for row in table("1.5", "step"))
    block = HeadHasher()
    (done,) = block.update(PATTERN[:BLOCK_SIZE])
    hasher = HeadHasher.resume(spine=bytes.fromhex(first), blocks=1, open_block=PATTERN[BLOCK_SIZE : BLOCK_SIZE + 1])
    assert done.spine.hex() == first
    (completed,) = hasher.update(PATTERN[BLOCK_SIZE + 1 :])
    assert (completed.digest.hex(), completed.spine.hex()) == (middle, second)
    assert (hasher.open_digest().hex(), hasher.head().hex()) == (last, head)


def test_chunk_hashes() -> None:
    rows = table("1.4", "bytes")
    assert [quoted(row["`hash`"]) for row in rows] == [[chunk_hash(x).hex()] for x in (FIRST, SECOND, PATTERN)]
    assert len(FIRST_CHUNK.hash) == HASH_SIZE == 8


def test_states() -> None:
    rows = table("1.2", "state")
    assert [quoted(row["state"])[0] for row in rows] == [state.value for state in ResourceState]
    assert [row["next"] == "–" for row in rows] == [state.terminal for state in ResourceState]
    names = {visibility.value for visibility in Visibility}
    assert set(re.findall(r"`(live|atomic)`", section("1.2"))) == names


@pytest.mark.parametrize(
    ("number", "column", "cls"),
    [
        ("1.2", "Status", Status),
        ("1.2", "Metadata", Metadata),
        ("1.2", "Limits", Limits),
        ("1.4", "Chunk", Chunk),
        ("1.6", "Checkpoint", Checkpoint),
    ],
)
def test_fields_of_values(number: str, column: str, cls: type) -> None:
    rows = table(number, column)
    hints = typing.get_type_hints(cls)
    assert [quoted(row[column])[0] for row in rows] == list(hints)
    for row, (name, annotation) in zip(rows, hints.items(), strict=True):
        # A missing previous hash is empty bytes in the code.
        assert ("none" in row["type"]) == (optional(annotation) or (cls, name) == (Chunk, "previous")), name


def test_rules_of_metadata() -> None:
    rules = {quoted(row["Metadata"])[0]: row["rule"] for row in table("1.2", "Metadata")}
    numbers = {
        name: [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\b(?! ?\.)", rule)] for name, rule in rules.items()
    }
    labels, key_least, key_most, value_least, value_most = numbers["labels"]
    within: list[dict[str, Any]] = [
        {"name": "n" * numbers["name"][1]},
        {"content_type": "a/" + "b" * (255 - 2)},
        {"labels": {"k" * key_least: "v" * value_least, "k" * key_most: "v" * value_most}},
        {"labels": {str(i): "" for i in range(labels)}},
        {"context": "c" * numbers["context"][1]},
    ]
    beyond: list[dict[str, Any]] = [
        {"name": "n" * (numbers["name"][1] + 1)},
        {"name": "n" * (numbers["name"][0] - 1)},
        {"name": "a\u2028"},
        {"name": "a\x85"},
        {"content_type": "a/" + "b" * (256 - 2)},
        {"labels": {"": ""}},
        {"labels": {"k" * (key_most + 1): ""}},
        {"labels": {"k": "v" * (value_most + 1)}},
        {"labels": {str(i): "" for i in range(labels + 1)}},
        {"context": "c" * (numbers["context"][1] + 1)},
        {"context": ""},
    ]
    assert "3 to 255 characters" in rules["content_type"]
    for values in within:
        Metadata(**{"name": "x", **values})
    for values in beyond:
        with pytest.raises(InvalidArgument):
            Metadata(**{"name": "x", **values})
    assert Metadata(name="x").content_type in quoted(rules["content_type"])


def test_references() -> None:
    written = blocks(section("1.3"), "text")[0].split()
    assert [str(Reference.parse(text)) for text in written] == written
    assert Reference.parse(written[1]).base == "wss://logs.example.org/tailrace"


# Conversations


def test_every_message_with_all_its_fields() -> None:
    rows = table("2.1", "message")
    written: dict[str, dict[str, Row]] = {}
    for row in rows:
        written.setdefault(quoted(row["message"])[0], {}).update(dict.fromkeys(quoted(row["field"]), row))
    classes: dict[str, Any] = {
        name: getattr(messages, name)
        for name in messages.__all__
        if dataclasses.is_dataclass(getattr(messages, name)) and name not in ("Status", "Limits", "Checkpoint")
    }
    assert set(written) == set(classes)
    for name, cls in classes.items():
        fields = {field.name: field for field in dataclasses.fields(cls)}
        assert list(written[name]) == list(fields), name
        hints = typing.get_type_hints(cls)
        for field_name, field in fields.items():
            row = written[name][field_name]
            has_none = "none" in row["type"]
            assert has_none == (optional(hints[field_name]) or (name, field_name) == ("End", "previous")), row
            if (name, field_name) != ("Follow", "start"):
                assert bool(row["default"]) == (field.default is not dataclasses.MISSING), row


def test_every_request_and_its_answers() -> None:
    rows = table("2", "request")
    assert [quoted(row["request"])[0] for row in rows] == [cls.__name__ for cls in (*websocket_codec.REQUESTS,)]
    known = {*messages.__all__}
    for row in rows:
        assert set(quoted(" ".join(row.values()))) <= known


def transitions(rows: list[Row]) -> dict[tuple[str, str], str]:
    return {(quoted(row["state"])[0], quoted(row["message"])[0]): quoted(row["next state"])[0] for row in rows}


def test_states_of_conversations() -> None:
    for number, code in (("2.2", UPLOAD_TRANSITIONS), ("2.6", DOWNLOAD_TRANSITIONS)):
        assert transitions(table(number, "state")) == {
            (state.name, message.__name__): target.name for (state, message), target in code.items()
        }
    senders = {quoted(row["message"])[0]: row["from"] for row in table("2.2", "state")}
    assert {name for name, sender in senders.items() if sender == "client"} == {"Chunk", "Finish", "Abort"}


def test_offences_of_uploaders() -> None:
    limits = Limits(
        chunk_size=10,
        upload_window=20,
        upload_grace=60.0,
        max_download_window=20,
        max_resource_size=100,
        max_page_size=1,
        max_heads=1,
    )
    status = example("opened").message.status

    def refused(chunk: Chunk) -> str:
        receiver = UploadReceiver(limits)
        receiver.open(
            messages.Opened(
                status=status, token="", epoch=1, offset=0, newlines=0, head=bytes(16), until=15, limits=limits
            )
        )
        receiver.receive(Chunk(0, bytes(10), bytes(8), b""))
        with pytest.raises(TailraceError) as caught:
            receiver.receive(chunk)
        return caught.value.code

    offences = (
        Chunk(10, bytes(11), bytes(8), bytes(8)),
        Chunk(11, b"x", bytes(8), bytes(8)),
        Chunk(10, bytes(6), bytes(8), bytes(8)),
        Chunk(10, b"x", bytes(8), b"\x01" * 8),
        Chunk(10, b"", bytes(8), bytes(8)),
    )
    codes = [quoted(row["error"])[0] for row in table("2.2", "offence")]
    assert codes[: len(offences)] == [refused(chunk) for chunk in offences]


# Errors


def test_every_error() -> None:
    rows = {quoted(row["code"])[0]: row for row in table("3", "code")}
    classes = {cls.code: cls for cls in error_classes()}
    assert set(rows) == set(classes)
    types = {"text": str, "integer": int, "number": float, "integer or null": int | None}
    for code, cls in classes.items():
        row = rows[code]
        details = re.findall(r"`(\w+)`: ([a-z ]+)", row["details"])
        assert tuple(name for name, _ in details) == cls.fields, code
        hints = typing.get_type_hints(cls.__init__)
        assert all(types[written] == hints[name] for name, written in details), code
        assert quoted(row["gRPC status"]) == [grpc_errors.STATUS_OF_CODE[code].name]
        assert (int(row["close"]), int(row["HTTP"])) == websocket_errors.ERROR_TABLE[code]
        assert set(re.split(", ", row["from"])) <= {"server", "client", "reserved"}


def test_codes_named_in_the_text_exist() -> None:
    codes = {cls.code for cls in error_classes()}
    advice = section("3").partition("What an uploader can do")[2]
    named = [code for code in quoted(advice) if re.fullmatch(r"[a-z_]+", code)]
    assert len(named) > 10
    assert set(named) <= codes
    for row in table("2.2", "offence"):
        assert quoted(row["error"])[0] in codes


# gRPC


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
            method = grpc_codec._METHODS[getattr(messages, request)]
            assert [f"`{method.service}`", f"`{method.name}`"] == [row["service"], row["method"]]
    assert f"without a port, {grpc_client.DEFAULT_PORT} is" in section("4.1").replace("\n", " ")


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
    text = section("4.3").replace("\n", " ")
    assert f"cut to {grpc_errors._MAX_STATUS_MESSAGE} bytes of UTF-8" in text
    assert f"cut to {grpc_values._MAX_ERROR_TEXT:,} bytes of UTF-8" in text


def test_statuses_that_are_not_ours() -> None:
    written = {
        quoted(row["gRPC status without the entry"])[0]: quoted(row["treat as"])[0]
        for row in table("4.3", "gRPC status without the entry")
    }
    assert written == {status.name: code for status, code in grpc_errors._CODE_OF_STATUS.items()}
    assert set(written) == {status.name for status in grpc.StatusCode} - {"OK"}


def test_sizes() -> None:
    assert f"{grpc_values.MAX_DATA_MESSAGE:,} bytes as an encoded message" in section("4.2").replace("\n", " ")
    assert grpc_values.MAX_DATA_MESSAGE < 4 * 1024 * 1024
    assert MAX_OFFSET == 9007199254740991
    assert f"({MAX_OFFSET})" in section("1.1")
    assert f"never above {MAX_CHUNK_SIZE:,}" in section("1.2")
    assert f"at most {MAX_CHUNK_SIZE:,} bytes" in section("2.6").replace("\n", " ")
    assert f"{MAX_CHUNK_SIZE:,} bytes (4 MiB − 64 KiB)" in section("2.10").replace("\n", " ")
    for limit in (grpc_values.MAX_CONTROL_MESSAGE, websocket_codec.MAX_TEXT_SIZE):
        assert f"at most {limit:,} bytes" in section("2.10").replace("\n", " ")
    assert f"has {websocket_frames.MAX_FRAME_SIZE:,} bytes" in section("5.4").replace("\n", " ")
    assert f"cut to {websocket_codec.MAX_CLOSE_REASON} bytes" in section("5.6").replace("\n", " ")
    assert websocket_codec.MAX_REQUEST == 2**32 - 1


# WebSocket

_HEX = {"hash": 16, "head": 32, "sha256": 64}
_WRONG: dict[str, list[Any]] = {
    "uint": [-1, 2**53, 1.0, "1", True],
    "int": [2**63, 1.0, "1", True],
    "number": ["1", True],
    "text": [1, "\ud800"],
    "flag": [1, "true"],
    "state": ["DONE", 1],
    "visibility": ["secret", 1],
    "labels": [[], {"a": 1}],
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
    "labels": {"a": "b"},
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


MESSAGES = [pytest.param(side, row, id=f"{side}-{row['`type`'].strip('`')}") for side, row in message_tables()]


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
    if name not in ("ping", "pong", "hello"):
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


@pytest.mark.parametrize(("side", "row"), [p for p in MESSAGES if "–" not in p.values[1]["message"]])  # type: ignore[index]
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


@pytest.mark.parametrize(("side", "row"), [p for p in MESSAGES if "–" not in p.values[1]["message"]])  # type: ignore[index]
def test_websocket_table_has_every_field_of_the_message(side: str, row: Row) -> None:
    name = quoted(row["message"])[0]
    hints = typing.get_type_hints(Checkpoint if name == "Checkpoint" else getattr(messages, name))
    expected = [wire for field in hints for wire in _SPREAD.get((name, field), [field])]
    assert list(field_types(row["fields"])) == (["status"] if name == "Status" else expected)


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


def example(type_: str) -> Any:
    """Return a message of the server that the document gives as an example, decoded."""
    for line in blocks(section("5.3"), "json")[1].splitlines():
        if json.loads(line)["type"] == type_:
            return decode("server", line)
    raise AssertionError(type_)


def test_every_websocket_message_is_in_a_table() -> None:
    written = {
        side: {quoted(row["`type`"])[0] for of, row in message_tables() if of == side} for side in ("client", "server")
    }
    assert written["client"] == {*websocket_codec._CLIENT_DECODERS, "ping"}
    assert written["server"] == {*websocket_codec._SERVER_DECODERS, "hello", "pong", "error"}


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


def test_names_on_the_wire_have_the_version() -> None:
    text = section("9").replace("\n", " ")
    assert f"subprotocol `{websocket_codec.SUBPROTOCOL}`" in text
    assert f"path `{websocket_codec.PATH}`" in text
    assert f"`hello.protocol` {websocket_codec.PROTOCOL_VERSION}" in text
    assert f"package `{pb.DESCRIPTOR.package}`" in text


def test_close_codes() -> None:
    listed = {int(row["code"]) for row in table("5.6", "code")}
    assert {status.close_code for status in websocket_errors.ERROR_TABLE.values()} <= listed


# Sequences


def test_sequence_diagrams_use_the_messages() -> None:
    diagrams = blocks(section("7"), "mermaid")
    assert len(diagrams) == 4
    for diagram in diagrams:
        labels = re.findall(r"-(?:>>|x)\w+: (\w+)", diagram)
        assert labels
        assert set(labels) <= {*messages.__all__, "Chunks", "error"}
