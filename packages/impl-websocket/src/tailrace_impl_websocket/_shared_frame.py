"""One frame for all followers that are sent the same chunk."""

from __future__ import annotations

from tailrace_common_api import KIBIBYTE
from tailrace_impl_common.messages import Chunk
from tailrace_impl_websocket._chunk_frame import chunk_header
from tailrace_impl_websocket._frame_layout import BINARY, frame_header

_LARGEST = 16 * KIBIBYTE
"""Chunks up to this size are copied behind their header; larger ones are sent as they are."""


class SharedFrame:
    """The frame that was made last. Belongs to one event loop.

    A frame names its request, which has the same number on most connections of followers: each has but one.
    """

    __slots__ = ("_chunk", "_frame", "_request")

    def __init__(self) -> None:
        """Begin with none."""
        self._chunk: Chunk | None = None
        self._request = 0
        self._frame = b""

    def frame(self, request: int, chunk: Chunk) -> bytes | None:
        """Return the whole frame of a chunk in a request; ``None`` for a chunk that is better not copied."""
        if chunk is self._chunk and request == self._request:
            return self._frame
        size = len(chunk.data)
        if size > _LARGEST:
            return None
        header = chunk_header(request, chunk)
        self._frame = b"".join((frame_header(BINARY, len(header) + size), header, chunk.data))
        self._chunk = chunk
        self._request = request
        return self._frame
