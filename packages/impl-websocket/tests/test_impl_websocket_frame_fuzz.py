"""This package's reading of frames against that of the library websockets, whatever a client sends."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from impl_websocket_protocols import Told, masked, told_by
from websockets.frames import Frame, Opcode

from tailrace_impl_websocket._buffered_protocol import BufferedFrameProtocol
from tailrace_impl_websocket._frame_layout import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from tailrace_impl_websocket._frame_protocol import FrameProtocol

MAX_SIZE = 100_000
BEHIND = bytes(MAX_SIZE + 20)
"""Completes any frame that has begun, and is none itself: what waits for more of a frame has to say what it thinks."""

# The sums stay away from the limit where control frames stand between fragments: the library counts those, too.
payloads = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([bytes(125), bytes(126), b"\xff" * 127, b"a" * 65535, b"b" * 65536]),
)
texts = st.one_of(st.text(max_size=60).map(str.encode), payloads)
masks = st.binary(min_size=4, max_size=4)
closes = st.one_of(
    st.just(b""),
    st.binary(max_size=6),
    st.tuples(st.sampled_from([999, 1000, 1001, 1004, 1005, 1006, 1009, 3000, 4999, 5000]), st.binary(max_size=4)).map(
        lambda parts: parts[0].to_bytes(2, "big") + parts[1]
    ),
)
controls = st.builds(masked, st.sampled_from([PING, PONG]), st.binary(max_size=125), mask=masks)
closing = st.builds(masked, st.just(CLOSE), closes, mask=masks)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message in fragments, cut anywhere, with control frames between them."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    payload = draw(texts if opcode == TEXT else payloads)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    edges = [0, *cuts, len(payload)]
    parts = []
    for index, (start, end) in enumerate(pairwise(edges)):
        if index:
            parts += draw(st.lists(st.builds(masked, st.just(PING), st.binary(max_size=9), mask=masks), max_size=1))
        final = index == len(cuts)
        parts.append(masked(CONTINUATION if index else opcode, payload[start:end], final=final, mask=draw(masks)))
    return b"".join(parts)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A frame with something wrong in its header."""
    frame = bytearray(
        masked(draw(st.sampled_from([CONTINUATION, TEXT, BINARY, CLOSE, PING])), draw(st.binary(max_size=200)))
    )
    what = draw(st.sampled_from(["reserved", "opcode", "unmasked", "fragment", "endless"]))
    if what == "reserved":
        frame[0] |= draw(st.sampled_from([0x10, 0x20, 0x40, 0x70]))
    elif what == "opcode":
        frame[0] = draw(st.integers(0, 255))
    elif what == "unmasked":
        frame[1] &= 0x7F
    elif what == "fragment":
        frame[0] &= 0x7F
    else:
        frame[1:2] = b"\xff" + draw(st.integers(MAX_SIZE - 1, 2**64 - 1)).to_bytes(8, "big")
    return bytes(frame)


class Sent:
    """What a client sends, and the size of the pieces in which it arrives."""

    def __init__(self, data: bytes, size: int) -> None:
        # Single bytes only where there are few of them.
        size = max(size, len(data) // 3000)
        self.pieces = [data[start : start + size] for start in range(0, len(data), size)]
        self.ended = [*self.pieces, BEHIND]

    def __repr__(self) -> str:
        data = b"".join(self.pieces)
        shown = data.hex() if len(data) < 2000 else f"{data[:500].hex()}...{data[-500:].hex()}"
        return f"Sent({shown}, {len(self.pieces)} pieces)"


sound = st.lists(st.one_of(messages(), messages(), controls), max_size=6).map(b"".join)
# Where something is wrong, what follows it matters, too.
unsound = st.tuples(sound, st.one_of(damaged(), closing, st.binary(max_size=12)), sound).map(b"".join)
streams = st.builds(
    Sent,
    st.one_of(sound, unsound),
    st.sampled_from([1, 2, 7, 100, 5000, 70_000, 10**6]),
)


class Oracle(FrameProtocol):
    """Looks at a text as soon as it is complete, whatever arrives together with it.

    The class that it extends reads all that has arrived before it looks: then it is chance which mistake counts.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._text: bytearray | None = None
        self._recv_frame = self.conn.recv_frame
        self.conn.recv_frame = self._look  # type: ignore[method-assign]

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
@given(sent=streams)
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
