"""Chunks to binary frames and back.

A frame is a header and then the bytes of the chunk:

======  ====  ==============================================================================
offset  size  field, integers big-endian
======  ====  ==============================================================================
0       1     layout: 1
1       1     flags: bit 0 = first chunk of its transfer, bit 1 = checkpoint; others zero
2       2     zero
4       4     request number
8       8     offset of the first byte in the resource
16      8     hash of the bytes
24      8     hash of the previous chunk; zero and ignored when first
32      8     newlines below the end of the chunk; only with the checkpoint flag
40      16    head at the end of the chunk; only with the checkpoint flag
======  ====  ==============================================================================
"""

from __future__ import annotations

import struct

from tailrace_common_api import MAX_OFFSET, Checkpoint, MessageTooLarge, ProtocolError, Unsupported
from tailrace_impl_common import MAX_CHUNK_SIZE
from tailrace_impl_common.messages import Chunk

_HEADER = struct.Struct(">BBHIQ8s8s")
_CHECKPOINT = struct.Struct(">Q16s")
HEADER_SIZE = _HEADER.size
"""Bytes before those of the chunk, without a checkpoint."""
CHECKPOINT_SIZE = _CHECKPOINT.size
"""Bytes of a checkpoint, between the header and the bytes of the chunk."""
MAX_FRAME_SIZE = HEADER_SIZE + CHECKPOINT_SIZE + MAX_CHUNK_SIZE
"""Largest binary frame of any layout, in bytes: what servers accept anyway, below 4 MiB."""
CHUNK_LAYOUT = 1
_IS_FIRST = 1
HAS_CHECKPOINT = 2
"""Flag of a frame that has a checkpoint."""
_KNOWN_FLAGS = _IS_FIRST | HAS_CHECKPOINT
_NO_HASH = bytes(8)


def frame_chunk(request: int, chunk: Chunk) -> bytes:
    """Return the frame that holds ``chunk``; the data is copied once, into it."""
    return b"".join((chunk_header(request, chunk), chunk.data))


def chunk_header(request: int, chunk: Chunk) -> bytes:
    """Return what stands before the bytes of ``chunk`` in its frame."""
    offset, _, digest, previous, checkpoint = chunk
    flags = 0
    if not previous:
        flags, previous = _IS_FIRST, _NO_HASH
    if checkpoint is None:
        return _HEADER.pack(CHUNK_LAYOUT, flags, 0, request, offset, digest, previous)
    header = _HEADER.pack(CHUNK_LAYOUT, flags | HAS_CHECKPOINT, 0, request, offset, digest, previous)
    return header + _CHECKPOINT.pack(checkpoint.newlines, checkpoint.head)


def parse_chunk(frame: bytes | memoryview) -> Chunk:
    """Return the chunk in ``frame``, its data a view of it.

    Raises:
        ProtocolError: The frame is not a chunk, or too large for one.
    """
    size = len(frame)
    if size > MAX_FRAME_SIZE:
        raise MessageTooLarge(size=size, maximum=MAX_FRAME_SIZE)
    if size <= HEADER_SIZE:
        raise ProtocolError("a chunk without bytes")
    layout, flags, reserved, _, offset, digest, previous = _HEADER.unpack_from(frame)
    if layout != CHUNK_LAYOUT:
        raise ProtocolError(f"a frame of layout {layout} where only layout {CHUNK_LAYOUT} belongs")
    if flags & ~_KNOWN_FLAGS or reserved:
        raise Unsupported("a chunk with unknown flags")
    if offset > MAX_OFFSET - size:
        raise ProtocolError(f"a chunk at offset {offset}, which is too large")
    if flags & _IS_FIRST:
        previous = b""
    if not flags & HAS_CHECKPOINT:
        return Chunk(offset, memoryview(frame)[HEADER_SIZE:], digest, previous)
    start = HEADER_SIZE + CHECKPOINT_SIZE
    if size <= start:
        raise ProtocolError("a chunk without bytes")
    newlines, head = _CHECKPOINT.unpack_from(frame, HEADER_SIZE)
    checkpoint = Checkpoint(offset + size - start, newlines, head)
    return Chunk(offset, memoryview(frame)[start:], digest, previous, checkpoint)
