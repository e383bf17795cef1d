"""The messages of the byte streams to JSON and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tailrace_impl_common.messages import (
    ClientMessage,
    End,
    Follow,
    Read,
    ReadLines,
    ServerMessage,
    Started,
    Window,
)
from tailrace_impl_websocket._codec_values import (
    limits_to_json,
    optional_place,
    place,
    read_limits,
    read_start,
    read_status,
    start_to_json,
    status_to_json,
)
from tailrace_impl_websocket._fields import Fields

_HASH_SIZE = 8


def download_request_to_json(message: Read | Follow | ReadLines | Window) -> tuple[str, dict[str, object]]:
    match message:
        case Read():
            return "read", {
                "id": message.id,
                "token": message.token,
                "start": place(message.start),
                "end": optional_place(message.end),
                "suffix": optional_place(message.suffix),
                "window": message.window,
                "chunk_size": message.chunk_size,
            }
        case Follow():
            return "follow", {
                "id": message.id,
                "token": message.token,
                **start_to_json(message.start),
                "window": message.window,
                "chunk_size": message.chunk_size,
            }
        case ReadLines():
            return "read_lines", {
                "id": message.id,
                "token": message.token,
                "first": place(message.first),
                "count": optional_place(message.count),
                "last": optional_place(message.last),
                "window": message.window,
                "chunk_size": message.chunk_size,
            }
        case Window():
            return "window", {"until": message.until}


def _window(fields: Fields) -> int:
    return fields.optional_count("window") or 0


def _chunk_size(fields: Fields) -> int:
    return fields.optional_count("chunk_size") or 0


DOWNLOAD_REQUEST_READERS: Mapping[str, Callable[[Fields], ClientMessage]] = {
    "read": lambda fields: Read(
        id=fields.text("id"),
        token=fields.optional_text("token"),
        start=fields.optional_integer("start") or 0,
        end=fields.optional_integer("end"),
        suffix=fields.optional_integer("suffix"),
        window=_window(fields),
        chunk_size=_chunk_size(fields),
    ),
    "follow": lambda fields: Follow(
        id=fields.text("id"),
        token=fields.optional_text("token"),
        start=read_start(fields),
        window=_window(fields),
        chunk_size=_chunk_size(fields),
    ),
    "read_lines": lambda fields: ReadLines(
        id=fields.text("id"),
        token=fields.optional_text("token"),
        first=fields.optional_integer("first") or 0,
        count=fields.optional_integer("count"),
        last=fields.optional_integer("last"),
        window=_window(fields),
        chunk_size=_chunk_size(fields),
    ),
    "window": lambda fields: Window(fields.count("until")),
}


def download_response_to_json(message: Started | End) -> tuple[str, dict[str, object]]:
    match message:
        case Started():
            return "started", {
                "offset": message.offset,
                "end": message.end,
                "line": message.line,
                "status": status_to_json(message.status),
                "limits": limits_to_json(message.limits),
            }
        case End():
            return "end", {
                "offset": message.offset,
                "previous": message.previous.hex() or None,
                "status": status_to_json(message.status),
            }


DOWNLOAD_RESPONSE_READERS: Mapping[str, Callable[[Fields], ServerMessage]] = {
    "started": lambda fields: Started(
        offset=fields.count("offset"),
        end=fields.optional_count("end"),
        line=fields.optional_count("line"),
        status=read_status(fields.nested("status")),
        limits=read_limits(fields.nested("limits")),
    ),
    "end": lambda fields: End(
        offset=fields.count("offset"),
        previous=fields.optional_digest("previous", _HASH_SIZE) or b"",
        status=read_status(fields.nested("status")),
    ),
}
