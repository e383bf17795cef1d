"""The client's reading of frames against that of the library websockets, whatever a server sends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from impl_websocket_client_wire import ClientWire, Heard, frames_of_client
from impl_websocket_frames import MAX_SIZE, Sent, streams, unmasked
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, OPEN, Protocol

from tailrace_impl_websocket._client_frames import ClientFrameProtocol
from tailrace_impl_websocket._frame_layout import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT


@dataclass
class Read:
    """What became of a stream."""

    messages: list[str | bytes] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    closes: list[bytes] = field(default_factory=list)
    ended: bool = False

    @classmethod
    def of(cls, messages: list[str | bytes], output: bytes) -> Read:
        sent = frames_of_client(output)
        pongs = [data for opcode, data in sent if opcode == PONG]
        closes = [data[:2] for opcode, data in sent if opcode == CLOSE]
        return cls(messages, pongs, closes, bool(closes))


def read_by_the_library(pieces: list[bytes]) -> Read:
    """Return what the library makes of pieces that arrive one after the other."""
    protocol = Protocol(CLIENT, state=OPEN, max_size=MAX_SIZE)
    messages: list[str | bytes] = []
    message: list[Frame] = []
    receive: Any = protocol.recv_frame

    def look(frame: Frame) -> None:
        # A text is looked at as soon as it is complete, whatever arrives together with it.
        receive(frame)
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        message.append(frame)
        if frame.fin:
            data = b"".join(bytes(part.data) for part in message)
            is_text = message[0].opcode is Opcode.TEXT
            message.clear()
            messages.append(data.decode() if is_text else data)

    protocol.recv_frame = look  # type: ignore[method-assign]  # stands in for the method
    for piece in pieces:
        protocol.receive_data(piece)
    return Read.of(messages, b"".join(protocol.data_to_send()))


async def read_by_the_client(pieces: list[bytes]) -> Read:
    """Return what the client makes of pieces that arrive one after the other."""
    wire, heard = ClientWire(), Heard()
    frames = ClientFrameProtocol(wire, max_size=MAX_SIZE, ping_interval=None, ping_timeout=None, close_timeout=1.0)
    frames.begin(pieces[0] if pieces else b"")
    frames.hand_to(heard)
    for piece in pieces[1:]:
        wire.feed(piece)
    told = heard.left
    frames.connection_lost(None)
    assert heard.left
    made = Read.of(heard.messages, b"".join(wire.written))
    assert told == made.ended
    return made


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(sent=streams(unmasked))
def test_any_bytes_are_read_as_the_library_reads_them(sent: Sent) -> None:
    async def compare() -> None:
        expected = read_by_the_library(sent.pieces)
        made = await read_by_the_client(sent.pieces)
        if made.ended and not expected.ended:
            # What is wrong with a frame is known from its header; the library waits for its payload.
            event("refused at once")
            expected = read_by_the_library(sent.ended)
        assert made == expected
        expected = read_by_the_library(sent.ended)
        assert await read_by_the_client(sent.ended) == expected
        event(f"messages: {len(expected.messages)}")
        event(f"ends with {expected.closes}")

    asyncio.run(compare())


@pytest.mark.parametrize(
    "sent",
    [
        unmasked(BINARY, bytes(MAX_SIZE)),
        unmasked(BINARY, bytes(MAX_SIZE + 1)),
        unmasked(TEXT, b"a" * MAX_SIZE),
        unmasked(TEXT, b"a" * (MAX_SIZE - 1) + b"\xff"),
        unmasked(BINARY, bytes(60_000), final=False) + unmasked(CONTINUATION, bytes(40_000)),
        unmasked(BINARY, bytes(60_000), final=False) + unmasked(CONTINUATION, bytes(40_001)),
        unmasked(TEXT, "ä".encode()[:1], final=False) + unmasked(PING, b"p") + unmasked(CONTINUATION, "ä".encode()[1:]),
        unmasked(TEXT, b"\xed\xa0\x80"),
        unmasked(BINARY, b"", final=False) * 1000 + unmasked(CONTINUATION, b""),
        unmasked(BINARY, b"", final=False)
        + unmasked(CONTINUATION, b"", final=False) * 99
        + unmasked(CONTINUATION, b"x"),
        unmasked(BINARY, b"a", final=False) + unmasked(CLOSE, b"\x03\xe8"),
        unmasked(CLOSE, b"\x03\xe8bye") + unmasked(BINARY, b"too late"),
        unmasked(CLOSE, b"") + unmasked(PING, b"too late"),
        unmasked(CLOSE, b"\x03"),
        unmasked(CLOSE, b"\x03\xe8\xff"),
        unmasked(PING, bytes(125)) + unmasked(PONG, bytes(125)) + unmasked(PING, bytes(126)),
        # Lengths that take more bytes than they need.
        b"\x82\x7e\x00\x01x" + b"\x82\x7f" + (2).to_bytes(8, "big") + b"yz",
    ],
    ids=[
        "largest",
        "too large",
        "largest text",
        "large text that is none",
        "largest in fragments",
        "too large in fragments",
        "cut within a character",
        "surrogate",
        "first fragment again",
        "empty fragments",
        "close within a message",
        "behind a close",
        "behind an empty close",
        "half a code",
        "reason that is no text",
        "large control frames",
        "long lengths",
    ],
)
@pytest.mark.parametrize("size", [1, 1000, 10**6])
async def test_limits_of_the_protocol(sent: bytes, size: int) -> None:
    pieces = Sent(sent, size).pieces
    assert await read_by_the_client(pieces) == read_by_the_library(pieces)
