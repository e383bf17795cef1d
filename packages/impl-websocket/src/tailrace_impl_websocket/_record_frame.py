"""Records and deliveries to binary frames and back.

A frame is a header, then an entry for each record, then the data of all records, then the keys of all:

======  ====  ============================================
offset  size  field, integers big-endian
======  ====  ============================================
0       1     layout: 2 for records, 3 for deliveries
1       1     flags, zero
2       2     zero
4       4     request number
8       4     number of records, 1 to 8,192
12      4     zero
16      n     entries
======  ====  ============================================

The entry of a record is the length of its data and that of its key (4 bytes each; 0 = no key). That of a delivery is
its id (8 bytes), its attempt (4 bytes), its priority (4 bytes, signed), and then the same two lengths.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from tailrace_common_api import (
    MAX_KEY_SIZE,
    MAX_OFFSET,
    MessageTooLarge,
    ProtocolError,
    QueuedRecord,
    RecordBatch,
    Unsupported,
)
from tailrace_impl_common.record_messages import MESSAGE_RECORDS, Deliveries
from tailrace_impl_websocket._chunk_frame import MAX_FRAME_SIZE

_HEADER = struct.Struct(">BBHIII")
RECORD_HEADER_SIZE = _HEADER.size
"""Bytes before the entries."""
RECORDS_LAYOUT = 2
DELIVERIES_LAYOUT = 3
_LENGTHS_SIZE = 8
_DELIVERY = struct.Struct(">QIiII")
DELIVERY_ENTRY_SIZE = _DELIVERY.size
"""Bytes of the entry of a delivery."""
_COUNT = struct.Struct(">I")


def frame_records(request: int, batch: RecordBatch) -> bytes:
    """Return the frame that holds ``batch``."""
    data, keys = batch
    count = len(data)
    lengths = [0] * (2 * count)
    lengths[::2] = map(len, data)
    header = _HEADER.pack(RECORDS_LAYOUT, 0, 0, request, count, 0)
    # All lengths at once: a call for every record would take longer than all the rest.
    if not keys:
        return b"".join((header, struct.pack(f">{2 * count}I", *lengths), *data))
    encoded = [key.encode() if key else b"" for key in keys]
    lengths[1::2] = map(len, encoded)
    return b"".join((header, struct.pack(f">{2 * count}I", *lengths), *data, *encoded))


def parse_records(frame: bytes) -> RecordBatch:
    """Return the records in ``frame``.

    Raises:
        ProtocolError: The frame does not hold records, or too many, or is too large.
    """
    count = _count(frame, RECORDS_LAYOUT, _LENGTHS_SIZE)
    lengths = struct.unpack_from(f">{2 * count}I", frame, RECORD_HEADER_SIZE)
    return RecordBatch(*_contents(frame, RECORD_HEADER_SIZE + _LENGTHS_SIZE * count, lengths[::2], lengths[1::2]))


def frame_deliveries(request: int, message: Deliveries) -> bytes:
    """Return the frame that holds ``message``."""
    records = message.records
    keys = [record.key.encode() if record.key else b"" for record in records]
    header = _HEADER.pack(DELIVERIES_LAYOUT, 0, 0, request, len(records), 0)
    entries = (
        _DELIVERY.pack(record.id, record.attempt, record.priority, len(record.data), len(key))
        for record, key in zip(records, keys, strict=True)
    )
    return b"".join((header, *entries, *(record.data for record in records), *keys))


def parse_deliveries(frame: bytes) -> Deliveries:
    """Return the deliveries in ``frame``.

    Raises:
        ProtocolError: The frame does not hold deliveries, or too many, or is too large.
    """
    count = _count(frame, DELIVERIES_LAYOUT, DELIVERY_ENTRY_SIZE)
    start = RECORD_HEADER_SIZE + DELIVERY_ENTRY_SIZE * count
    entries = _DELIVERY.iter_unpack(memoryview(frame)[RECORD_HEADER_SIZE:start])
    ids, attempts, priorities, data_lengths, key_lengths = zip(*entries, strict=True)
    data, keys = _contents(frame, start, data_lengths, key_lengths)
    if not all(attempts) or max(ids) > MAX_OFFSET:
        raise ProtocolError("a delivery with attempt 0, or an id that no answer can hold")
    return Deliveries(tuple(map(QueuedRecord, ids, attempts, priorities, data, keys or (None,) * count)))


def delivery_figures(frame: bytes | memoryview) -> tuple[int, int]:
    """Return how many records a frame of deliveries says that it holds, and what they count for, in bytes.

    A frame that holds something else has figures that are of no use, and are harmless: :func:`parse_deliveries` says.
    """
    count = int(_COUNT.unpack_from(frame, 8)[0])
    return count, len(frame) - RECORD_HEADER_SIZE - (DELIVERY_ENTRY_SIZE - _LENGTHS_SIZE) * count


def _count(frame: bytes, layout: int, entry_size: int) -> int:
    """Return how many records there are, all entries of which are in the frame.

    Raises:
        ProtocolError: The header is not one of this layout.
    """
    size = len(frame)
    if size > MAX_FRAME_SIZE:
        raise MessageTooLarge(size=size, maximum=MAX_FRAME_SIZE)
    if size < RECORD_HEADER_SIZE:
        raise ProtocolError(f"a frame of records of {size} bytes; its header has {RECORD_HEADER_SIZE}")
    found, flags, reserved, _, count, zero = _HEADER.unpack_from(frame)
    if found != layout:
        raise ProtocolError(f"a frame of layout {found} where only layout {layout} belongs")
    if flags or reserved or zero:
        raise Unsupported("a frame of records with unknown flags")
    if not 1 <= count <= MESSAGE_RECORDS:
        raise ProtocolError(f"a message of {count} records; it holds 1 to {MESSAGE_RECORDS}")
    if size < RECORD_HEADER_SIZE + entry_size * count:
        raise ProtocolError(f"a frame of {size} bytes is too short for the lengths of {count} records")
    return int(count)


def _contents(
    frame: bytes, start: int, data_lengths: Sequence[int], key_lengths: Sequence[int]
) -> tuple[list[bytes], Sequence[str | None]]:
    """Return data and keys of all records; the keys are empty when none has one.

    Raises:
        ProtocolError: The lengths do not add up to the frame, or a key is none.
    """
    end_of_data = start + sum(data_lengths)
    if end_of_data + sum(key_lengths) != len(frame):
        raise ProtocolError("the lengths of the records do not add up to the length of their frame")
    data = list(_slices(frame, start, data_lengths))
    if end_of_data == len(frame):
        return data, ()
    if max(key_lengths) > MAX_KEY_SIZE:
        raise ProtocolError(f"a key of {max(key_lengths)} bytes; at most {MAX_KEY_SIZE} are allowed")
    try:
        return data, [key.decode() or None for key in _slices(frame, end_of_data, key_lengths)]
    except UnicodeDecodeError:
        raise ProtocolError("a key that is not UTF-8") from None


def _slices(frame: bytes, start: int, lengths: Sequence[int]) -> Iterable[bytes]:
    return [frame[begin:end] for begin, end in pairwise(accumulate(lengths, initial=start))]
