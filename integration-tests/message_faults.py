"""What a network may do to one message of a connection: to an HTTP/2 frame of gRPC, or to a frame of a WebSocket."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HTTP2_HEADER = 9


class Direction(enum.Enum):
    """Who sends a message."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class Harm(enum.Enum):
    """What becomes of a message."""

    CUT_BEFORE = "cut before"
    """The connection breaks before it."""
    CUT_INSIDE = "cut inside"
    """The connection breaks when half of it is through."""
    CUT_AFTER = "cut after"
    """The connection breaks behind it."""
    CORRUPT_HEADER = "corrupt framing"
    """A bit of its framing changes."""
    CORRUPT_PAYLOAD = "corrupt payload"
    """A bit of its payload changes."""
    DUPLICATE = "duplicate"
    """It comes twice."""
    TRUNCATE = "truncate"
    """Its second half is missing, and what follows comes nevertheless."""
    DELAY = "delay"
    """It, and what follows, comes later."""
    STALL = "stall"
    """Neither it nor anything behind it comes, and nobody is told."""


CUTS = frozenset({Harm.CUT_BEFORE, Harm.CUT_INSIDE, Harm.CUT_AFTER})
"""What breaks the connection."""
DELAY = 0.05
"""How much later a delayed message comes, in seconds."""


@dataclass(slots=True)
class MessageFault:
    """Harm to one message of the first connection that has so many of them."""

    direction: Direction
    number: int
    """Which one, counted from 1. The opening of a WebSocket, and of HTTP/2 by the client, is a message too."""
    harm: Harm
    seed: int = 0
    """Chooses the bit that changes."""
    done: bool = False
    """Whether it has happened."""

    def spoil(self, message: bytes, header: int) -> bytes:
        """Return what comes instead of a message whose framing takes ``header`` bytes."""
        half = message[: len(message) // 2]
        match self.harm:
            case Harm.CUT_BEFORE | Harm.STALL:
                return b""
            case Harm.CUT_INSIDE | Harm.TRUNCATE:
                return half
            case Harm.DUPLICATE:
                return message + message
            case Harm.CORRUPT_HEADER:
                return self._flip(message, 0, header)
            case Harm.CORRUPT_PAYLOAD:
                return self._flip(message, header if len(message) > header else 0, len(message))
            case _:
                return message

    def _flip(self, message: bytes, start: int, end: int) -> bytes:
        chance = random.Random(f"{self.seed} {self.number} {self.harm.value}")
        changed = bytearray(message)
        changed[chance.randrange(start, end)] ^= 1 << chance.randrange(8)
        return bytes(changed)


class Framing:
    """Divides the bytes of one direction of a connection into messages."""

    def __init__(self, scheme: str, direction: Direction) -> None:
        """Begin a connection; ``scheme`` is the one of a transport's URL."""
        self._buffer = bytearray()
        self._http2 = scheme.startswith("grpc")
        self._begun = self._http2 and direction is Direction.TO_CLIENT

    def feed(self, data: bytes) -> list[tuple[bytes, int]]:
        """Take bytes, and return the messages that are whole now, each with the length of its framing."""
        self._buffer += data
        messages = []
        while (lengths := self._next()) is not None:
            header, length = lengths
            messages.append((bytes(self._buffer[:length]), header))
            del self._buffer[:length]
            self._begun = True
        return messages

    def rest(self) -> bytes:
        """Give back what is no whole message yet; called when no message matters any more."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _next(self) -> tuple[int, int] | None:
        """Return the lengths of the framing and of all of the first message, if it is there."""
        buffer = self._buffer
        if not self._begun:
            end = len(_PREFACE) if self._http2 else buffer.find(b"\r\n\r\n") + 4
            return (end, end) if 4 <= end <= len(buffer) else None
        lengths = self._http2_lengths() if self._http2 else self._websocket_lengths()
        return lengths if lengths is not None and lengths[1] <= len(buffer) else None

    def _http2_lengths(self) -> tuple[int, int] | None:
        if len(self._buffer) < _HTTP2_HEADER:
            return None
        return _HTTP2_HEADER, _HTTP2_HEADER + int.from_bytes(self._buffer[:3], "big")

    def _websocket_lengths(self) -> tuple[int, int] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length = buffer[1] & 0x7F
        extended = {126: 2, 127: 8}.get(length, 0)
        header = 2 + extended + (4 if buffer[1] & 0x80 else 0)
        if len(buffer) < header:
            return None
        return header, header + (int.from_bytes(buffer[2 : 2 + extended], "big") if extended else length)
