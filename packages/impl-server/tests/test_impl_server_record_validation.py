"""What records have to be: JSON objects, documents of a schema, messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from tailrace_common_api import BulkRefused, ConfigurationError, ProblemKind, RecordBatch, record_problems
from tailrace_impl_server._record_validation import (
    BytesValidator,
    JsonObjectValidator,
    JsonSchemaValidator,
    ProtobufValidator,
    is_json,
    validator_for,
)
from tailrace_server_api import Validator

CONTACT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "address": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def problems(validator: Validator, *data: bytes) -> list[tuple[int, str | None]]:
    """Return which records are refused, and their fields."""
    with pytest.raises(BulkRefused) as caught:
        validator.parse(RecordBatch(data))
    found = record_problems(caught.value)
    assert caught.value.total == len(found)
    assert {item.kind for item in found} == {ProblemKind.INVALID}
    assert all(0 < len(item.problem) <= 300 for item in found)
    return [(item.index, item.field) for item in found]


def message_set(syntax: str = "proto2") -> bytes:
    found = descriptor_pb2.FileDescriptorSet()
    file = found.file.add(name="shop.proto", package="shop", syntax=syntax)
    contact = file.message_type.add(name="Contact")
    contact.field.add(name="name", number=1, type=9, label=2 if syntax == "proto2" else 1)
    file.message_type.add(name="Order").field.add(name="contact", number=1, type=11, label=1, type_name=".shop.Contact")
    return found.SerializeToString()


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("Application/JSON", True),
        ("application/vnd.shop.contact+json", True),
        ("application/jsonish", False),
        ("text/json", False),
        ("application/x-ndjson", False),
        ("", False),
    ],
)
def test_json_is_known_by_its_content_type(content_type: str, expected: bool) -> None:
    assert is_json(content_type) is expected
    assert type(validator_for(None, content_type)) is (JsonObjectValidator if expected else BytesValidator)
    own = BytesValidator()
    assert validator_for(own, content_type) is own


def test_anything_is_bytes() -> None:
    data = [b"", b"\xff", b"{"]
    assert BytesValidator().parse(RecordBatch(data)) == data


def test_json_objects_are_parsed() -> None:
    texts = ['{"text":"é\\u00e9 🙂","n":[1,2.5,null,true]}', " {} ", '{"big":18446744073709551615}']
    assert JsonObjectValidator().parse(RecordBatch([text.encode() for text in texts])) == list(map(json.loads, texts))


def test_what_is_no_json_object_is_named_each() -> None:
    bad = [
        b"",
        b"{",
        b"[]",
        b"1",
        b"true",
        b"null",
        b'"x"',
        b"{'a':1}",
        b'{"a":NaN}',
        b"\xef\xbb\xbf{}",
        b'{"a":"\xff"}',
    ]
    data = [b"{}", *bad, b"{}"]
    assert problems(JsonObjectValidator(), *data) == [(index + 1, None) for index in range(len(bad))]


def test_a_schema_names_the_field() -> None:
    validator = JsonSchemaValidator(CONTACT)
    good = {"name": "Ann", "address": {"city": "Ghent"}, "tags": ["a"]}
    assert validator.parse(RecordBatch([json.dumps(good).encode()])) == [good]
    bad: list[tuple[Any, str | None]] = [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": 5}, "name"),
        ({"name": "x", "address": {}}, "address.city"),
        ({"name": "x", "address": {"city": 1}}, "address.city"),
        ({"name": "x", "tags": ["a", 5]}, "tags.1"),
        ({"name": "x", "other": 1}, None),
        ([], None),
        ({"name": "x" * 10_000, "other": "y" * 10_000}, None),
    ]
    data = [json.dumps(value).encode() for value, _ in bad]
    expected = [(index + 1, field) for index, (_, field) in enumerate(bad)]
    assert problems(validator, json.dumps(good).encode(), *data, json.dumps(good).encode()) == expected


def test_a_record_that_is_no_json_hides_no_other_problem() -> None:
    assert problems(JsonSchemaValidator(CONTACT), b"?", b'{"name":5}', b'{"name":"x"}', b"{}") == [
        (0, None),
        (1, "name"),
        (3, "name"),
    ]


def test_references_within_a_schema_are_followed() -> None:
    validator = JsonSchemaValidator(
        {"$defs": {"name": {"type": "string"}}, "properties": {"name": {"$ref": "#/$defs/name"}}}
    )
    assert problems(validator, b'{"name":"x"}', b'{"name":1}') == [(1, "name")]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "odd"},
        {"pattern": "("},
        {"$ref": "#/nowhere"},
        # Nothing is fetched, from wherever.
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"$ref": "file:///etc/hostname"},
        {"$schema": "http://127.0.0.1:1/dialect"},
    ],
)
def test_what_is_no_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        JsonSchemaValidator(schema)
    assert caught.value.field == "schema"


def test_messages_are_parsed() -> None:
    validator = ProtobufValidator(message_set(), "shop.Contact")
    (value,) = validator.parse(RecordBatch([b"\x0a\x03Ann"]))
    assert value.name == "Ann"  # type: ignore[attr-defined]  # made at run time
    order = ProtobufValidator(message_set("proto3"), "shop.Order")
    (value,) = order.parse(RecordBatch([b"\x0a\x05\x0a\x03Ann"]))
    assert value.contact.name == "Ann"  # type: ignore[attr-defined]  # made at run time


def test_what_is_no_message_is_named_each() -> None:
    good = b"\x0a\x03Ann"
    validator = ProtobufValidator(message_set(), "shop.Contact")
    assert problems(validator, good, b"\xff", b"", good, b"\x0a\x05Ann") == [(1, None), (2, "name"), (4, None)]


@pytest.mark.parametrize(
    ("descriptors", "message", "field"),
    [
        (b"\xff\xff", "shop.Contact", "descriptors"),
        (message_set(), "shop.Nothing", "message"),
        (b"", "shop.Contact", "message"),
    ],
)
def test_what_describes_no_message_is_refused(descriptors: bytes, message: str, field: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ProtobufValidator(descriptors, message)
    assert caught.value.field == field


def test_a_set_that_lacks_an_import_is_refused() -> None:
    found = descriptor_pb2.FileDescriptorSet.FromString(message_set())
    found.file[0].dependency.append("missing.proto")
    with pytest.raises(ConfigurationError):
        ProtobufValidator(found.SerializeToString(), "shop.Contact")
