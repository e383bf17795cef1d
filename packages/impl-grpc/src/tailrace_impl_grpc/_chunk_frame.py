"""Chunks to wire bytes and back, without the generated classes, which copy the payload several times.

A chunk travels as field 3 of ``UploadRequest`` and of ``DownloadResponse``. What is written here is byte for byte what
the generated classes write: fields in the order of their numbers, each once, default values left out::

    1a <length>  [08 <offset>]  [12 <length> <hash>]  [1a <length> <previous>]
                 [22 <length> [08 <size>] [10 <newlines>] [1a <length> <head>]]  [2a <length> <data>]

A checkpoint that an uploader is told, which may be one for each line, travels as field 2 of ``UploadResponse``. It has
the same fields, and is only written here.

Only this layout is read here. Any other spelling of the same message, which another implementation may choose, is left
to the generated classes, and so is a ``DownloadResponse`` that has more than the chunk.
"""

from __future__ import annotations

from tailrace_common_api import Checkpoint
from tailrace_impl_common import Buffer
from tailrace_impl_common.messages import Chunk

CHUNK_TAG = 0x1A
_TOLD_TAG = 0x12
_OFFSET_TAG = 0x08
_HASH_TAG = 0x12
_PREVIOUS_TAG = 0x1A
_CHECKPOINT_TAG = 0x22
_DATA_TAG = 0x2A
_SIZE_TAG = 0x08
_NEWLINES_TAG = 0x10
_HEAD_TAG = 0x1A

_BYTES = [bytes([value]) for value in range(256)]
"""Each byte by its value."""
# What is read is compared as a number, what is written is joined as bytes.
_CHUNK, _TOLD = _BYTES[CHUNK_TAG], _BYTES[_TOLD_TAG]
_OFFSET, _HASH, _PREVIOUS, _CHECKPOINT, _DATA = (
    _BYTES[tag] for tag in (_OFFSET_TAG, _HASH_TAG, _PREVIOUS_TAG, _CHECKPOINT_TAG, _DATA_TAG)
)
_SIZE, _NEWLINES, _HEAD = (_BYTES[tag] for tag in (_SIZE_TAG, _NEWLINES_TAG, _HEAD_TAG))
_LARGEST = 2**64 - 1


def chunk_parts(chunk: Chunk) -> tuple[bytes, Buffer]:
    """Return the message that holds ``chunk``: what is before the data, and the data itself.

    Raises:
        ValueError: A number is not within 64 bits.
    """
    offset, data, own, previous, checkpoint = chunk
    fields = b""
    if offset:
        fields = _OFFSET + _varint(offset)
    if own:
        fields += _HASH + _varint(len(own)) + own
    if previous:
        fields += _PREVIOUS + _varint(len(previous)) + previous
    if checkpoint is not None:
        content = _checkpoint_fields(checkpoint)
        fields += _CHECKPOINT + _varint(len(content)) + content
    size = len(data)
    if size:
        fields += _DATA + _varint(size)
    return _CHUNK + _varint(len(fields) + size) + fields, data


def frame_chunk(chunk: Chunk) -> bytes:
    """Return the same as one; the data is copied once, into it."""
    return b"".join(chunk_parts(chunk))


def frame_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Return the message that tells ``checkpoint`` to an uploader.

    Raises:
        ValueError: A number is not within 64 bits.
    """
    content = _checkpoint_fields(checkpoint)
    return _TOLD + _varint(len(content)) + content


def parse_chunk(message: bytes) -> Chunk | None:
    """Return the chunk in ``message``, its data a view of it; ``None`` if it is not in the layout written here."""
    try:
        position, end = _length_at(message, 1)
        if message[0] != CHUNK_TAG or end != len(message):
            return None
        offset = 0
        own = previous = b""
        checkpoint = None
        tag = message[position]
        if tag == _OFFSET_TAG:
            offset, position = _varint_at(message, position + 1)
            tag = message[position]
        if tag == _HASH_TAG:
            start, position = _length_at(message, position + 1)
            own = bytes(message[start:position])
            tag = message[position]
        if tag == _PREVIOUS_TAG:
            start, position = _length_at(message, position + 1)
            previous = bytes(message[start:position])
            tag = message[position]
        if tag == _CHECKPOINT_TAG:
            start, position = _length_at(message, position + 1)
            checkpoint = _parse_checkpoint(message, start, position)
            if checkpoint is None:
                return None
            tag = message[position]
        if tag != _DATA_TAG:
            return None
        start, position = _length_at(message, position + 1)
    except IndexError:
        return None
    if position != end:
        return None
    return Chunk(offset, memoryview(message)[start:], own, previous, checkpoint)


def _checkpoint_fields(checkpoint: Checkpoint) -> bytes:
    fields = b""
    if checkpoint.size:
        fields = _SIZE + _varint(checkpoint.size)
    if checkpoint.newlines:
        fields += _NEWLINES + _varint(checkpoint.newlines)
    if checkpoint.head:
        fields += _HEAD + _varint(len(checkpoint.head)) + checkpoint.head
    return fields


def _parse_checkpoint(message: bytes, position: int, end: int) -> Checkpoint | None:
    size = newlines = 0
    head = b""
    if position < end and message[position] == _SIZE_TAG:
        size, position = _varint_at(message, position + 1)
    if position < end and message[position] == _NEWLINES_TAG:
        newlines, position = _varint_at(message, position + 1)
    if position < end and message[position] == _HEAD_TAG:
        start, position = _length_at(message, position + 1)
        head = bytes(message[start:position])
    return Checkpoint(size, newlines, head) if position == end else None


def _varint(value: int) -> bytes:
    """Return ``value`` in groups of seven bits, lowest first, the top bit set in all but the last."""
    if 0 <= value < 128:
        return _BYTES[value]
    if not 0 <= value <= _LARGEST:
        raise ValueError(f"{value} is not within 64 bits")
    encoded = b""
    while value > 127:
        encoded += _BYTES[value & 127 | 128]
        value >>= 7
    return encoded + _BYTES[value]


def _varint_at(message: bytes, position: int) -> tuple[int, int]:
    """Return the number at ``position`` and where it ends; ``IndexError`` if it is cut off or longer than needed."""
    byte = message[position]
    position += 1
    if byte < 128:
        return byte, position
    value = byte & 127
    shift = 7
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
        if shift > 63:
            raise IndexError
    # A longer spelling, or one above 64 bits, is for the generated classes to judge.
    if not byte or value > _LARGEST:
        raise IndexError
    return value, position


def _length_at(message: bytes, position: int) -> tuple[int, int]:
    """Return where the content of the length-delimited field starts whose length is at ``position``, and its end."""
    length = message[position]
    start = position + 1
    if length > 127:
        length, start = _varint_at(message, position)
    # Whether the content is all there is seen behind it: what is behind has to be there, too, or has to be the end.
    return start, start + length
