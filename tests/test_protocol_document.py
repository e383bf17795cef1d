"""PROTOCOL.md says what the code does: words, messages, conversations and errors."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from typing import Any

import pytest
from protocol_document import (
    DOCUMENT,
    FIRST,
    FIRST_CHUNK,
    ROOT,
    SECOND,
    Row,
    blocks,
    optional,
    prose,
    quoted,
    section,
    table,
)
from xxhash import xxh3_128_hexdigest

from tailrace_common_api import (
    HEAD_SIZE,
    MAX_KEY_SIZE,
    MAX_OFFSET,
    MAX_PRIORITY,
    MAX_RECORD_SIZE,
    MIN_PRIORITY,
    RECORD_OVERHEAD,
    BulkResult,
    Checkpoint,
    Context,
    ContextEvent,
    ContextEventKind,
    ContextState,
    InvalidArgument,
    Limits,
    Metadata,
    QueuedRecord,
    QueueFigures,
    RecordBatch,
    RecordLimits,
    Reference,
    ResourceState,
    Settlement,
    Status,
    TailraceError,
    Verdict,
    Visibility,
    error_classes,
    error_from_wire,
)
from tailrace_impl_common import (
    BLOCK_SIZE,
    HASH_SIZE,
    MAX_CHUNK_SIZE,
    HeadHasher,
    RecordDigest,
    chunk_hash,
    head_of,
    messages,
    record_messages,
)
from tailrace_impl_common._download_machine import DOWNLOAD_TRANSITIONS
from tailrace_impl_common._retry import is_retried
from tailrace_impl_common._upload_machine import UPLOAD_TRANSITIONS, UploadReceiver
from tailrace_impl_common.messages import Chunk
from tailrace_impl_grpc import _codec_values as grpc_values
from tailrace_impl_grpc import _error_table as grpc_errors
from tailrace_impl_websocket import _chunk_frame as websocket_frames
from tailrace_impl_websocket import _codec as websocket_codec
from tailrace_impl_websocket import _error_table as websocket_errors
from tailrace_server_api import Operation

VECTORS = ROOT / "packages/impl-common/tests/head_vectors.json"
PATTERN = bytes(i % 251 for i in range(300_000))


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
    parts = [PATTERN[:BLOCK_SIZE], PATTERN[: BLOCK_SIZE + 1], PATTERN[: 2 * BLOCK_SIZE], PATTERN]
    assert [quoted(row["`hash`"]) for row in rows] == [[chunk_hash(data).hex()] for data in (FIRST, SECOND, *parts)]
    known = {vector["size"]: vector["chunk_hash"] for vector in json.loads(VECTORS.read_text())["vectors"]}
    assert all(chunk_hash(PATTERN[:size]).hex() == digits for size, digits in known.items())
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
        ("1.10", "Context", Context),
        ("1.10", "ContextEvent", ContextEvent),
        ("1.11", "RecordLimits", RecordLimits),
        ("1.11", "BulkResult", BulkResult),
        ("2.18", "QueuedRecord", QueuedRecord),
        ("2.18", "Settlement", Settlement),
        ("2.18", "QueueFigures", QueueFigures),
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


def test_states_and_events_of_contexts() -> None:
    (row,) = [row for row in table("1.10", "Context") if quoted(row["Context"]) == ["state"]]
    assert quoted(row["meaning"]) == [state.value for state in ContextState]
    assert [quoted(row["kind"])[0] for row in table("1.10", "kind")] == [kind.value for kind in ContextEventKind]


def test_scopes() -> None:
    (scopes,) = re.findall(r"named by scopes: (.*?)\.", prose("2.13"))
    assert quoted(scopes) == [operation.value for operation in Operation]


def test_what_a_client_comes_back_from() -> None:
    said: dict[str, bool] = {}
    for row in table("2.14", "what ended it"):
        for code in quoted(row["what ended it"]):
            said[code] = row["come back by itself"].startswith("yes")
    assert said == {cls.code: True for cls in error_classes() if is_retried(example(cls))}


def example(cls: type[TailraceError]) -> TailraceError:
    """Return an error of a class; its details are of the right types and mean nothing."""
    hints = typing.get_type_hints(cls.__init__)
    values = {name: (typing.get_args(hints[name]) or (hints[name],))[0]() for name in cls.fields}
    return error_from_wire(cls.code, "", values)


def test_references() -> None:
    written = blocks(section("1.3"), "text")[0].split()
    assert [str(Reference.parse(text)) for text in written] == written
    assert Reference.parse(written[1]).base == "wss://logs.example.org/tailrace"


# Conversations


# Messages that are values, too: their fields are in section 1.
_VALUES = ("Status", "Limits", "Checkpoint", "Context", "ContextEvent")


def test_every_message_with_all_its_fields() -> None:
    rows = table("2.1", "message")
    written: dict[str, dict[str, Row]] = {}
    for row in rows:
        written.setdefault(quoted(row["message"])[0], {}).update(dict.fromkeys(quoted(row["field"]), row))
    classes: dict[str, Any] = {
        name: getattr(messages, name)
        for name in messages.__all__
        if dataclasses.is_dataclass(getattr(messages, name)) and name not in _VALUES
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


RECORD_MESSAGES: list[tuple[str, list[Any]]] = [
    (
        "2.16",
        [
            record_messages.OpenBulk,
            record_messages.BulkOpened,
            record_messages.CommitBulk,
            record_messages.BulkCommitted,
        ],
    ),
    ("2.17", [record_messages.Query, record_messages.QueryStarted, record_messages.QueryEnd]),
    (
        "2.18",
        [
            record_messages.Work,
            record_messages.WorkOpened,
            record_messages.Credit,
            record_messages.CreditSet,
            record_messages.Deliveries,
            record_messages.Settle,
            record_messages.Settled,
            record_messages.GetQueue,
        ],
    ),
]


@pytest.mark.parametrize(("number", "classes"), RECORD_MESSAGES)
def test_messages_about_records_with_all_their_fields(number: str, classes: list[Any]) -> None:
    rows = table(number, "message")
    fields = [(cls, field) for cls in classes for field in dataclasses.fields(cls)]
    assert [(quoted(row["message"])[0], quoted(row["field"])[0]) for row in rows] == [
        (cls.__name__, field.name) for cls, field in fields
    ]
    for row, (cls, field) in zip(rows, fields, strict=True):
        assert ("none" in row["type"]) == optional(typing.get_type_hints(cls)[field.name]), row
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        assert bool(row["default"]) == has_default, row


def test_digests_of_records() -> None:
    rows = table("1.11", "records")
    three = [b'{"n":10}', b'{"n":20}', b'{"n":333}']
    batches = [RecordBatch([]), RecordBatch(three[:1]), RecordBatch(three), RecordBatch(three, [None, "k2", None])]
    assert [quoted(row["digest"]) for row in rows] == [[digest_of(batch)] for batch in batches]
    for row, batch in zip(rows, batches, strict=True):
        keys = batch.keys or [None] * len(batch.data)
        parts = (
            b"".join(batch.data),
            b"".join(len(data).to_bytes(4, "big") for data in batch.data),
            b"".join(len(key or "").to_bytes(4, "big") + (key or "").encode() for key in keys),
        )
        assert [quoted(row[column])[0] for column in ("*data*", "*lengths*", "*keys*")] == [
            xxh3_128_hexdigest(part) for part in parts
        ]


def digest_of(batch: RecordBatch) -> str:
    digest = RecordDigest()
    digest.update(batch)
    return digest.digest().hex()


def test_how_records_are_counted_and_packed() -> None:
    text = prose("1.11")
    assert f"those of its key, and {RECORD_OVERHEAD} more" in text
    assert f"1 to {record_messages.MESSAGE_RECORDS:,} records that count {record_messages.MESSAGE_BYTES:,}" in text
    assert f"1 to {MAX_KEY_SIZE} bytes" in text
    assert f"{MIN_PRIORITY:,} to {MAX_PRIORITY:,}" in prose("2.16")
    assert f"({MAX_RECORD_SIZE + RECORD_OVERHEAD:,})" in prose("2.18")
    assert [quoted(row["verdict"])[0] for row in table("2.18", "verdict")] == [verdict.value for verdict in Verdict]


def test_every_request_and_its_answers() -> None:
    rows = table("2", "request")
    assert [quoted(row["request"])[0] for row in rows] == [cls.__name__ for cls in (*websocket_codec.REQUESTS,)]
    known = {*messages.__all__, *record_messages.__all__}
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
        max_context_bytes=1 << 40,
        max_context_resources=1000,
        max_storage_bytes=1 << 50,
        max_uploads=100,
        max_contexts=100,
        max_requests=100,
        context_required=False,
    )
    status = Status(
        reference="",
        id="",
        version=1,
        state=ResourceState.INITIATED,
        size=0,
        lines=None,
        head=bytes(16),
        reason=None,
        alternatives=(),
        metadata=Metadata(name="x"),
        visibility=Visibility.LIVE,
        created_at=0.0,
    )

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
        assert quoted(row["gRPC status"]) == [grpc_errors.ERROR_TABLE[code].name]
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


def test_sizes() -> None:
    assert f"{grpc_values.MAX_DATA_MESSAGE:,} bytes as an encoded message" in prose("4.2")
    assert grpc_values.MAX_DATA_MESSAGE < 4 * 1024 * 1024
    assert MAX_OFFSET == 9007199254740991
    assert f"({MAX_OFFSET})" in section("1.1")
    assert f"never above {MAX_CHUNK_SIZE:,}" in section("1.2")
    assert f"at most {MAX_CHUNK_SIZE:,} bytes" in prose("2.6")
    assert f"{MAX_CHUNK_SIZE:,} bytes (4 MiB − 64 KiB)" in prose("2.10")
    for limit in (grpc_values.MAX_CONTROL_MESSAGE, websocket_codec.MAX_TEXT_SIZE):
        assert f"at most {limit:,} bytes" in prose("2.10")
    assert f"has {websocket_frames.MAX_FRAME_SIZE:,} bytes" in prose("5.4")
    assert f"cut to {websocket_codec.MAX_CLOSE_REASON} bytes" in prose("5.6")
    assert websocket_codec.MAX_REQUEST == 2**32 - 1


# Sequences


def test_sequence_diagrams_use_the_messages() -> None:
    diagrams = blocks(section("7"), "mermaid")
    assert len(diagrams) == 4
    for diagram in diagrams:
        labels = re.findall(r"-(?:>>|x)\w+: (\w+)", diagram)
        assert labels
        assert set(labels) <= {*messages.__all__, "Chunks", "error"}
