"""The format of a resource's journal; bytes in, values out, no I/O.

::

    offset 0        header: magic, format version, algorithm, block size, flags, CRC
    offset 4096     slot 0 ┐ alternating: the state of sequence n is in slot n % 2,
    offset 8192     slot 1 ┘ so that a torn write leaves the state before it
    offset 12288    one record of 48 bytes per full block

All integers are little-endian. A slot says how far the resource is proven and what its open end looks like; a record
commits to one full block and to everything before it. The CRC of a record includes the number of its block, so that
a record that stands in a wrong place is none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from zlib import crc32

from tailrace_common_api import ResourceState
from tailrace_impl_common import BlockDigest
from tailrace_server_api import BLOCK_SIZE, Boundary, Snapshot

SLOT_OFFSETS = (4096, 8192)
SLOT_SIZE = 512
"""Bytes of a slot: what disks write whole or not at all."""
RECORDS_OFFSET = 12288
RECORD_SIZE = 48
MAX_REASON = 256
"""Bytes of UTF-8 that are kept of the reason of a failure."""
EMPTY_SPINE = bytes(16)
"""The spine before the first full block."""
NO_BOOT_ID = bytes(16)
"""Stands for a system that does not tell its boots apart."""

_MAGIC = b"tailrace"
_FORMAT_VERSION = 1
_ALGORITHM_XXH3_128 = 1
_HEADER = struct.Struct("<8sHHII")
_LINE_ACCESS = 1

# Sequence, epoch, size, newlines, state, flags, length of the reason, reserved, spine, digest of the open block (zeros
# when it is empty), head, boot id.
_SLOT = struct.Struct("<QQQQBBHI16s16s16s16s")
_OPEN_LINE = 1
_SYNCED = 2
_CRC = struct.Struct("<I")
_STATES = (ResourceState.INITIATED, ResourceState.IN_PROGRESS, ResourceState.COMPLETED, ResourceState.FAILED)
_STATE_NUMBERS = {state: number for number, state in enumerate(_STATES)}

# Digest, spine after the block, newlines below its end, reserved.
_RECORD = struct.Struct("<16s16sQI")
_BLOCK_NUMBER = struct.Struct("<Q")
# The record with its CRC, and what that is of: the number of the block, and the record.
_STORED_RECORD = struct.Struct("<16s16sQII")
_CHECKED_RECORD = struct.Struct("<Q16s16sQI")


class JournalDamagedError(Exception):
    """Bytes of a journal that are not what was written; the message says which."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A state of a resource with what is needed to continue it."""

    snapshot: Snapshot
    """The state."""
    spine: bytes
    """Chain over the full blocks below the size; 16 bytes."""
    open_digest: bytes
    """Digest of the bytes behind the last full block, 16 bytes; empty when there are none."""
    boot_id: bytes = NO_BOOT_ID
    """Which boot of the system wrote the slot; 16 bytes."""
    synced: bool = False
    """Whether all that the slot proves was on disk before it was written, so that it survives power loss."""


def pack_header(*, line_access: bool) -> bytes:
    """Return the header of a new journal."""
    body = _HEADER.pack(_MAGIC, _FORMAT_VERSION, _ALGORITHM_XXH3_128, BLOCK_SIZE, _LINE_ACCESS if line_access else 0)
    return body + _CRC.pack(crc32(body))


def unpack_header(data: bytes) -> bool:
    """Return whether a journal belongs to a resource with line access.

    Args:
        data: The journal from its start, at least the header.

    Raises:
        JournalDamagedError: This is no journal, or none of this format.
    """
    body = data[: _HEADER.size]
    crc = data[_HEADER.size : _HEADER.size + _CRC.size]
    if len(crc) < _CRC.size or _CRC.unpack(crc)[0] != crc32(body):
        raise JournalDamagedError("the header of the journal is damaged")
    magic, version, algorithm, block_size, flags = _HEADER.unpack(body)
    if (magic, version, algorithm, block_size) != (_MAGIC, _FORMAT_VERSION, _ALGORITHM_XXH3_128, BLOCK_SIZE):
        raise JournalDamagedError(
            f"the journal is of format {version}, algorithm {algorithm}, blocks of {block_size} bytes"
        )
    return bool(flags & _LINE_ACCESS)


def cut_reason(reason: str) -> str:
    """Return the longest start of ``reason`` that fits into a slot."""
    return reason.encode("utf-8", "replace")[:MAX_REASON].decode("utf-8", "ignore")


def slot_offset(version: int) -> int:
    """Return where the slot for a version stands."""
    return SLOT_OFFSETS[version & 1]


def pack_slot(slot: Slot) -> bytes:
    """Return the bytes of a slot: always :data:`SLOT_SIZE`, so that nothing of an older, longer one remains."""
    snapshot = slot.snapshot
    reason = b"" if snapshot.reason is None else snapshot.reason.encode()
    body = _SLOT.pack(
        snapshot.version,
        snapshot.epoch,
        snapshot.size,
        snapshot.newlines,
        _STATE_NUMBERS[snapshot.state],
        (_OPEN_LINE if snapshot.open_line else 0) | (_SYNCED if slot.synced else 0),
        len(reason),
        0,
        slot.spine,
        slot.open_digest,
        snapshot.head,
        slot.boot_id,
    )
    body += reason
    return (_CRC.pack(crc32(body)) + body).ljust(SLOT_SIZE, b"\0")


def unpack_slot(data: bytes) -> Slot | None:
    """Return what a slot holds; ``None`` when its CRC does not hold (never written, or torn)."""
    fixed_end = _CRC.size + _SLOT.size
    if len(data) < fixed_end:
        return None
    fields = _SLOT.unpack_from(data, _CRC.size)
    version, epoch, size, newlines, state, flags, reason_length, _, spine, open_digest, head, boot_id = fields
    end = fixed_end + reason_length
    if reason_length > MAX_REASON or end > len(data) or state >= len(_STATES):
        return None
    if _CRC.unpack_from(data)[0] != crc32(data[_CRC.size : end]):
        return None
    failed = _STATES[state] is ResourceState.FAILED
    return Slot(
        Snapshot(
            version=version,
            epoch=epoch,
            state=_STATES[state],
            reason=data[fixed_end:end].decode("utf-8", "replace") if failed else None,
            size=size,
            newlines=newlines,
            head=head,
            open_line=bool(flags & _OPEN_LINE),
        ),
        spine=spine,
        open_digest=open_digest if size % BLOCK_SIZE else b"",
        boot_id=boot_id,
        synced=bool(flags & _SYNCED),
    )


def record_offset(block: int) -> int:
    """Return where the record of a block stands; with the number of full blocks, where the records end."""
    return RECORDS_OFFSET + block * RECORD_SIZE


def pack_records(blocks: Iterable[BlockDigest]) -> bytes:
    """Return the records of successive blocks."""
    pack, pack_checked = _STORED_RECORD.pack, _CHECKED_RECORD.pack
    return b"".join(
        [
            pack(digest, spine, newlines, 0, crc32(pack_checked(number, digest, spine, newlines, 0)))
            for number, digest, spine, newlines in blocks
        ]
    )


def unpack_record(data: bytes, block: int) -> BlockDigest:
    """Return the record of ``block``.

    Args:
        data: Its 48 bytes.
        block: Number of the block.

    Raises:
        JournalDamagedError: The record is damaged, missing, or that of another block.
    """
    if len(data) == RECORD_SIZE:
        digest, spine, newlines, _, checked = _STORED_RECORD.unpack(data)
        if crc32(data[: _RECORD.size], crc32(_BLOCK_NUMBER.pack(block))) == checked:
            return BlockDigest(block, digest, spine, newlines)
    raise JournalDamagedError(f"the record of block {block} is damaged")


def boundary_behind(record: BlockDigest) -> Boundary:
    """Return the boundary at the end of a block."""
    return Boundary((record.number + 1) * BLOCK_SIZE, record.newlines, record.spine)
