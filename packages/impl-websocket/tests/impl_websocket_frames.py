"""Streams of frames, sound and damaged, as either side may send them; for tests with hypothesis."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

from hypothesis import strategies as st

from tailrace_impl_websocket._frame_layout import BINARY, CLOSE, CONTINUATION, FINAL, MASKED, PING, PONG, TEXT

MAX_SIZE = 100_000
"""Largest message that is to be accepted, in bytes."""
BEHIND = bytes(MAX_SIZE + 20)
"""Completes any frame that has begun, and is none itself: what waits for more of a frame has to say what it thinks."""


class Build(Protocol):
    """Builds a frame of one side."""

    def __call__(self, opcode: int, payload: bytes, *, final: bool = True, mask: bytes = b"\x12\x34\x56\x78") -> bytes:
        """Return the frame; ``mask`` is for the side that masks."""


def unmasked(opcode: int, payload: bytes, *, final: bool = True, mask: bytes = b"") -> bytes:
    """Build a frame of a server."""
    size = len(payload)
    first = bytes([opcode | (FINAL if final else 0)])
    if size < 126:
        return first + bytes([size]) + payload
    if size < 65536:
        return first + b"\x7e" + size.to_bytes(2, "big") + payload
    return first + b"\x7f" + size.to_bytes(8, "big") + payload


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


@st.composite
def messages(draw: st.DrawFn, build: Build) -> bytes:
    """A message in fragments, cut anywhere, with control frames between them."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    payload = draw(texts if opcode == TEXT else payloads)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    edges = [0, *cuts, len(payload)]
    parts = []
    for index, (start, end) in enumerate(pairwise(edges)):
        if index:
            parts += draw(st.lists(st.builds(build, st.just(PING), st.binary(max_size=9), mask=masks), max_size=1))
        final = index == len(cuts)
        parts.append(build(CONTINUATION if index else opcode, payload[start:end], final=final, mask=draw(masks)))
    return b"".join(parts)


@st.composite
def damaged(draw: st.DrawFn, build: Build) -> bytes:
    """A frame with something wrong in its header."""
    frame = bytearray(
        build(draw(st.sampled_from([CONTINUATION, TEXT, BINARY, CLOSE, PING])), draw(st.binary(max_size=200)))
    )
    what = draw(st.sampled_from(["reserved", "opcode", "masking", "fragment", "endless"]))
    if what == "reserved":
        frame[0] |= draw(st.sampled_from([0x10, 0x20, 0x40, 0x70]))
    elif what == "opcode":
        frame[0] = draw(st.integers(0, 255))
    elif what == "masking":
        frame[1] ^= MASKED
    elif what == "fragment":
        frame[0] &= 0x7F
    else:
        frame[1:2] = bytes([frame[1] & MASKED | 0x7F]) + draw(st.integers(MAX_SIZE - 1, 2**64 - 1)).to_bytes(8, "big")
    return bytes(frame)


class Sent:
    """What is sent, and the size of the pieces in which it arrives."""

    def __init__(self, data: bytes, size: int) -> None:
        # Single bytes only where there are few of them.
        size = max(size, len(data) // 3000)
        self.pieces = [data[start : start + size] for start in range(0, len(data), size)]
        self.ended = [*self.pieces, BEHIND]

    def __repr__(self) -> str:
        data = b"".join(self.pieces)
        shown = data.hex() if len(data) < 2000 else f"{data[:500].hex()}...{data[-500:].hex()}"
        return f"Sent({shown}, {len(self.pieces)} pieces)"


def streams(build: Build) -> st.SearchStrategy[Sent]:
    """Return what one side may send."""
    controls = st.builds(build, st.sampled_from([PING, PONG]), st.binary(max_size=125), mask=masks)
    closing = st.builds(build, st.just(CLOSE), closes, mask=masks)
    sound = st.lists(st.one_of(messages(build), messages(build), controls), max_size=6).map(b"".join)
    # Where something is wrong, what follows it matters, too.
    unsound = st.tuples(sound, st.one_of(damaged(build), closing, st.binary(max_size=12)), sound).map(b"".join)
    return st.builds(
        Sent,
        st.one_of(sound, unsound),
        st.sampled_from([1, 2, 7, 100, 5000, 70_000, 10**6]),
    )
