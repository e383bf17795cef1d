"""From what an application sends to the bytes of a record."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tailrace_common_api import MAX_KEY_SIZE, InvalidArgument, Record

RecordContent = Record | Mapping[str, object] | bytes | bytearray | memoryview | str
"""A record to send: a mapping becomes one JSON object, text becomes UTF-8, a :class:`Record` has its key with it."""


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no value of JSON")


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode


def encode_record(content: RecordContent, key: str | None = None) -> Record:
    """Return the bytes of a record with its key.

    Args:
        content: The record; a mapping becomes compact JSON, text and JSON are UTF-8.
        key: Its key; ``None`` for the one of a :class:`Record`, or none.

    Raises:
        InvalidArgument: It cannot be a record, or the key cannot be a key.
    """
    data: object = content
    if isinstance(data, Record):
        key = data.key if key is None else key
        data = data.data
    if type(data) is not bytes:
        data = _bytes_of(data)
    if key is not None:
        key_size(key)
    return Record(data, key)


def _bytes_of(data: object) -> bytes:
    try:
        if isinstance(data, Mapping):
            return _encode(data if isinstance(data, dict) else dict(data)).encode()
        if isinstance(data, str):
            return data.encode()
        if isinstance(data, bytes | bytearray | memoryview):
            return bytes(data)
    except (ValueError, TypeError, RecursionError) as exc:
        raise InvalidArgument(field="record", problem=f"no JSON or no text: {exc}") from exc
    raise InvalidArgument(field="record", problem=f"{type(data).__name__} is no mapping, bytes or text")


def key_size(key: str) -> int:
    """Return the size of a key, in bytes of UTF-8.

    Raises:
        InvalidArgument: It cannot be a key.
    """
    try:
        size = len(key) if key.isascii() else len(key.encode())
    except (UnicodeEncodeError, AttributeError):
        size = 0
    if not 1 <= size <= MAX_KEY_SIZE:
        raise InvalidArgument(field="key", problem=f"{str(key)[:80]!a} is not text of 1 to {MAX_KEY_SIZE} bytes")
    return size
