"""How frames of HTTP/2 look (RFC 9113): names, numbers, and what writes their headers."""

from __future__ import annotations

import enum
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What every client begins with."""
HEADER_SIZE = 9
"""Bytes of the header of a frame."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE = 1
ENABLE_PUSH = 2
MAX_CONCURRENT_STREAMS = 3
INITIAL_WINDOW_SIZE = 4
MAX_FRAME_SIZE = 5
MAX_HEADER_LIST_SIZE = 6

DEFAULT_WINDOW = 65_535
"""Window of a connection and of its streams until something else is said."""
DEFAULT_FRAME_SIZE = 16_384
"""Largest payload that everybody takes; nobody may refuse less."""
DEFAULT_TABLE_SIZE = 4096
"""Size of the table of headers of a side until it says something else, in bytes."""
LARGEST_FRAME_SIZE = (1 << 24) - 1
LARGEST_WINDOW = (1 << 31) - 1

STREAM_MASK = (1 << 31) - 1
"""What counts of a stream's number, and of an increment; the bit above is reserved."""


class ErrorCode(enum.IntEnum):
    """Why a stream or a connection ends (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionOffence(Exception):
    """The peer has broken a rule of the connection, which ends with it."""

    def __init__(self, code: ErrorCode, problem: str) -> None:
        """Say which rule: ``problem`` goes to the peer."""
        super().__init__(problem)
        self.code = code
        self.problem = problem


_LONG = struct.Struct("!L")
_PAIR = struct.Struct("!LL")
_SETTING = struct.Struct("!HL")
_HEADER = struct.Struct("!HBBBL")


def frame_header(size: int, kind: int, flags: int, stream: int) -> bytes:
    """Return the header of a frame whose payload has ``size`` bytes."""
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream)


def header_frames(number: int, block: bytes, *, ends: bool, most: int) -> bytes:
    """Return the frames of a block of headers, whose payloads have up to ``most`` bytes; ``ends`` ends the stream."""
    flags = END_STREAM if ends else 0
    if len(block) <= most:
        return frame_header(len(block), HEADERS, flags | END_HEADERS, number) + block
    frames = [frame_header(most, HEADERS, flags, number), block[:most]]
    for begin in range(most, len(block), most):
        part = block[begin : begin + most]
        frames += (
            frame_header(len(part), CONTINUATION, END_HEADERS if begin + most >= len(block) else 0, number),
            part,
        )
    return b"".join(frames)


def window_update(stream: int, increment: int) -> bytes:
    """Return the frame that lets the peer send ``increment`` bytes more; stream 0 is the connection."""
    return frame_header(4, WINDOW_UPDATE, 0, stream) + _LONG.pack(increment)


def reset(stream: int, code: ErrorCode) -> bytes:
    """Return the frame that ends a stream at once."""
    return frame_header(4, RST_STREAM, 0, stream) + _LONG.pack(code)


def ping(payload: bytes, *, answer: bool) -> bytes:
    """Return a ping of eight bytes, or the answer to one."""
    return frame_header(8, PING, ACK if answer else 0, 0) + payload


def go_away(last_stream: int, code: ErrorCode, problem: str = "") -> bytes:
    """Return the frame that says that no stream behind ``last_stream`` is served, and why."""
    text = problem.encode()
    return frame_header(8 + len(text), GOAWAY, 0, 0) + _PAIR.pack(last_stream, code) + text


def settings(values: dict[int, int]) -> bytes:
    """Return the frame that says them."""
    payload = b"".join(_SETTING.pack(name, value) for name, value in values.items())
    return frame_header(len(payload), SETTINGS, 0, 0) + payload


SETTINGS_ACK = frame_header(0, SETTINGS, ACK, 0)
"""The answer to settings."""


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return the settings in the payload of a frame, whose size is a multiple of six."""
    return [(name, value) for name, value in _SETTING.iter_unpack(payload)]
