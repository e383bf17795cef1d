"""A frame that many followers are sent is the one that each of them would have been sent."""

from __future__ import annotations

from tailrace_common_api import Checkpoint
from tailrace_impl_common import chunk_hash
from tailrace_impl_common.messages import Chunk
from tailrace_impl_websocket._chunk_frame import frame_chunk, parse_chunk
from tailrace_impl_websocket._frame_layout import BINARY, frame_header
from tailrace_impl_websocket._shared_frame import SharedFrame


def chunk_of(data: bytes, offset: int = 5, previous: bytes = b"") -> Chunk:
    return Chunk(offset, data, chunk_hash(data), previous, Checkpoint(offset + len(data), 1, bytes(16)))


def test_the_frame_is_made_once_for_all_whose_request_has_that_number() -> None:
    shared = SharedFrame()
    chunk = chunk_of(b"a line\n")
    frame = shared.frame(1, chunk)
    expected = frame_chunk(1, chunk)
    assert frame == frame_header(BINARY, len(expected)) + expected
    assert shared.frame(1, chunk) is frame
    assert parse_chunk(expected) == chunk


def test_another_request_or_another_chunk_has_a_frame_of_its_own() -> None:
    shared = SharedFrame()
    chunk = chunk_of(b"a line\n")
    others = (
        (1, chunk),
        (2, chunk),
        (2, chunk._replace(previous=b"previous")),
        (2, chunk._replace(checkpoint=None)),
        (2, chunk_of(b"a line\n", 12)),
        (1, chunk_of(b"b line\n")),
        (1, chunk),
    )
    for request, other in others:
        frame = shared.frame(request, other)
        assert frame is not None
        assert frame.endswith(frame_chunk(request, other))


def test_a_large_chunk_is_not_copied_and_changes_nothing() -> None:
    shared = SharedFrame()
    small = chunk_of(b"a line\n")
    frame = shared.frame(1, small)
    assert shared.frame(1, chunk_of(bytes(16 * 1024 + 1))) is None
    assert shared.frame(1, small) is frame
