"""What all binary frames have in common, whatever they hold.

Byte 0 of a frame names its layout, bytes 4 to 7 its request.

======  ==========  ================  =======================================
layout  holds       bytes of header   module
======  ==========  ================  =======================================
1       a chunk     32                :mod:`tailrace_impl_websocket._chunk_frame`
2       records     16                :mod:`tailrace_impl_websocket._record_frame`
3       deliveries  16                :mod:`tailrace_impl_websocket._record_frame`
======  ==========  ================  =======================================
"""

from __future__ import annotations

import struct

from tailrace_common_api import ProtocolError, Unsupported
from tailrace_impl_common.messages import Buffer, Chunk
from tailrace_impl_common.record_messages import Deliveries, RecordBatch
from tailrace_impl_websocket._chunk_frame import (
    CHECKPOINT_SIZE,
    CHUNK_LAYOUT,
    HAS_CHECKPOINT,
    chunk_header,
    frame_chunk,
    parse_chunk,
)
from tailrace_impl_websocket._chunk_frame import HEADER_SIZE as CHUNK_HEADER_SIZE
from tailrace_impl_websocket._record_frame import (
    DELIVERIES_LAYOUT,
    RECORD_HEADER_SIZE,
    RECORDS_LAYOUT,
    frame_deliveries,
    frame_records,
    parse_deliveries,
    parse_records,
)

BinaryMessage = Chunk | RecordBatch | Deliveries
"""What travels in binary frames."""

_ROUTE = struct.Struct(">BxxxI")
_HEADER_SIZES = {
    CHUNK_LAYOUT: CHUNK_HEADER_SIZE,
    RECORDS_LAYOUT: RECORD_HEADER_SIZE,
    DELIVERIES_LAYOUT: RECORD_HEADER_SIZE,
}
_SHORTEST = min(_HEADER_SIZES.values())


def frame_of(request: int, message: BinaryMessage) -> bytes:
    """Return the binary frame that holds ``message``; its bytes are copied once, into it."""
    if type(message) is Chunk:
        return frame_chunk(request, message)
    if type(message) is RecordBatch:
        return frame_records(request, message)
    assert isinstance(message, Deliveries)
    return frame_deliveries(request, message)


def frame_parts(request: int, message: BinaryMessage) -> tuple[bytes, Buffer]:
    """Return two parts of the frame that holds ``message``; the second is the data of a chunk as it is."""
    if type(message) is Chunk:
        return chunk_header(request, message), message.data
    return frame_of(request, message), b""


def parse_frame(frame: bytes | memoryview) -> BinaryMessage:
    """Return what is in a frame that names its request; the data of a chunk is a view of it.

    Raises:
        ProtocolError: It is not what its layout says, or too large.
    """
    layout = frame[0]
    if layout == CHUNK_LAYOUT:
        return parse_chunk(frame)
    # Records are cut out of it one by one, which makes bytes of bytes only.
    whole = bytes(frame)
    return parse_records(whole) if layout == RECORDS_LAYOUT else parse_deliveries(whole)


def frame_request(frame: bytes | memoryview) -> int:
    """Return the request that a frame belongs to; looks no further.

    Raises:
        ProtocolError: The frame names none.
    """
    size = len(frame)
    if size < _SHORTEST:
        raise ProtocolError(f"a binary frame of {size} bytes; the shortest header has {_SHORTEST}")
    layout: int
    request: int
    layout, request = _ROUTE.unpack_from(frame)
    header = _HEADER_SIZES.get(layout)
    if header is None:
        raise Unsupported(f"binary frames of layout {layout} are unknown")
    if size < header:
        raise ProtocolError(f"a binary frame of {size} bytes; its header has {header}")
    if not request:
        raise ProtocolError("a binary frame of request 0")
    return request


def data_size(frame: bytes | memoryview) -> int:
    """Return what a frame that names its request counts for in windows, in bytes.

    That is the bytes of a chunk, and of records their data, their keys and an overhead for each.
    """
    layout = frame[0]
    if layout != CHUNK_LAYOUT:
        # The lengths of a record are as long as the overhead that it counts for.
        return len(frame) - RECORD_HEADER_SIZE
    return len(frame) - (CHUNK_HEADER_SIZE + CHECKPOINT_SIZE if frame[1] & HAS_CHECKPOINT else CHUNK_HEADER_SIZE)
