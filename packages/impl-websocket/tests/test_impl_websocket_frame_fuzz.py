"""This package's reading of frames against that of the library websockets, whatever a client sends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from impl_websocket_frames import MAX_SIZE, Sent, streams
from impl_websocket_protocols import Told, masked, told_by
from websockets.frames import Frame, Opcode

from tailrace_impl_websocket._buffered_protocol import BufferedFrameProtocol
from tailrace_impl_websocket._frame_layout import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from tailrace_impl_websocket._frame_protocol import FrameProtocol


class Oracle(FrameProtocol):
    """Looks at a text as soon as it is complete, whatever arrives together with it.

    The class that it extends reads all that has arrived before it looks: then it is chance which mistake counts.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._text: bytearray | None = None
        self._recv_frame = self.conn.recv_frame
        self.conn.recv_frame = self._look  # type: ignore[method-assign]  # stands in for the method

    def _look(self, frame: Frame) -> None:
        self._recv_frame(frame)
        if frame.opcode is Opcode.TEXT:
            self._text = bytearray()
        if self._text is not None and frame.opcode in (Opcode.TEXT, Opcode.CONT):
            self._text += frame.data
            if frame.fin:
                text, self._text = self._text, None
                try:
                    text.decode()
                except UnicodeDecodeError:
                    self.conn.events.pop()
                    raise


def same(made: Told, expected: Told) -> None:
    assert made.messages == expected.messages
    assert made.pongs == expected.pongs
    assert made.errors == expected.errors
    assert made.close_codes == expected.close_codes
    assert made.left
    assert expected.left


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(sent=streams(masked))
def test_any_bytes_are_read_as_the_library_reads_them(sent: Sent) -> None:
    async def compare() -> None:
        pieces, ended = sent.pieces, sent.ended
        expected = await told_by(Oracle, pieces, max_size=MAX_SIZE)
        for direct in (False, True):
            made = await told_by(BufferedFrameProtocol, pieces, direct=direct, max_size=MAX_SIZE)
            if made.errors and not expected.errors:
                # What is wrong with a frame is known from its header; the library waits for its payload.
                event("refused at once")
                expected = await told_by(Oracle, ended, max_size=MAX_SIZE)
            same(made, expected)
        expected = await told_by(Oracle, ended, max_size=MAX_SIZE)
        same(await told_by(BufferedFrameProtocol, ended, direct=True, max_size=MAX_SIZE), expected)
        event(f"messages: {len(expected.messages)}")
        event(f"ends with {expected.errors or expected.close_codes}")

    asyncio.run(compare())


@pytest.mark.parametrize(
    "sent",
    [
        masked(BINARY, bytes(MAX_SIZE)),
        masked(BINARY, bytes(MAX_SIZE + 1)),
        masked(BINARY, bytes(60_000), final=False) + masked(CONTINUATION, bytes(40_000)),
        masked(BINARY, bytes(60_000), final=False) + masked(CONTINUATION, bytes(40_001)),
        masked(TEXT, "ä".encode()[:1], final=False) + masked(PING, b"p") + masked(CONTINUATION, "ä".encode()[1:]),
        masked(TEXT, b"\xed\xa0\x80"),
        masked(BINARY, b"", final=False) * 1000 + masked(CONTINUATION, b""),
        masked(BINARY, b"", final=False) + masked(CONTINUATION, b"", final=False) * 1000 + masked(CONTINUATION, b"x"),
        masked(BINARY, b"a", final=False) + masked(CLOSE, b"\x03\xe8"),
        masked(CLOSE, b"\x03\xe8bye") + masked(BINARY, b"too late"),
        masked(CLOSE, b"") + masked(PING, b"too late"),
        masked(PING, bytes(125)) + masked(PONG, bytes(125)) + masked(PING, bytes(126)),
        # Lengths that take more bytes than they need.
        b"\x82\xfe\x00\x01\0\0\0\0x" + b"\x82\xff" + (2).to_bytes(8, "big") + b"\0\0\0\0yz",
    ],
    ids=[
        "largest",
        "too large",
        "largest in fragments",
        "too large in fragments",
        "cut within a character",
        "surrogate",
        "first fragment again",
        "empty fragments",
        "close within a message",
        "behind a close",
        "behind an empty close",
        "large control frames",
        "long lengths",
    ],
)
@pytest.mark.parametrize("size", [1, 1000, 10**6])
async def test_limits_of_the_protocol(sent: bytes, size: int) -> None:
    pieces = Sent(sent, size).pieces
    expected = await told_by(Oracle, pieces, max_size=MAX_SIZE)
    for direct in (False, True):
        same(await told_by(BufferedFrameProtocol, pieces, direct=direct, max_size=MAX_SIZE), expected)
