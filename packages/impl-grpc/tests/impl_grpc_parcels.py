"""What goes wrong on the way with the messages of a transfer, for the tests of the chunk chain."""

from __future__ import annotations

from collections.abc import Callable

from impl_grpc_foreign.parcels_pb2 import Part

CHUNK = 1000
CONTENT = bytes(range(256)) * 20
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, len(CONTENT)]


def build(data: bytes, previous: bytes) -> Part:
    return Part(remark="mine", content=data, before=previous)


def read(part: Part) -> tuple[bytes, bytes]:
    return part.content, part.before


def with_content(part: Part, content: bytes) -> Part:
    return Part(remark=part.remark, content=content, before=part.before)


FAULTS: dict[str, Callable[[list[Part]], list[Part]]] = {
    "first lost": lambda parts: parts[1:],
    "one lost": lambda parts: parts[:2] + parts[3:],
    "last lost": lambda parts: parts[:-2] + parts[-1:],
    "end lost": lambda parts: parts[:-1],
    "all lost": lambda _parts: [],
    "one repeated": lambda parts: parts[:3] + parts[2:],
    "end repeated": lambda parts: [*parts, parts[-1]],
    "two exchanged": lambda parts: [parts[0], parts[2], parts[1], *parts[3:]],
    "last two exchanged": lambda parts: [*parts[:-3], parts[-2], parts[-3], parts[-1]],
    "one corrupted": lambda parts: [parts[0], with_content(parts[1], b"?" + parts[1].content[1:]), *parts[2:]],
    "last corrupted": lambda parts: [*parts[:-2], with_content(parts[-2], parts[-2].content[:-1] + b"?"), parts[-1]],
    "last truncated": lambda parts: [*parts[:-2], with_content(parts[-2], parts[-2].content[:-1]), parts[-1]],
    "last emptied": lambda parts: [*parts[:-2], with_content(parts[-2], b""), parts[-1]],
    "hash corrupted": lambda parts: [
        *parts[:2],
        Part(content=parts[2].content, before=parts[2].before[:-1] + b"?"),
        *parts[3:],
    ],
    "another transfer behind": lambda parts: parts + parts,
}
"""Each makes of the messages of a transfer those that arrive."""
