"""Interrupted uploads of any size without their bytes: sparse files of zeros, with the journal that belongs to them.

The server takes nothing of it on trust: what it reads when it reopens such an upload holds its digests.
"""

from __future__ import annotations

import os
from pathlib import Path

from tailrace_common_api import ResourceState
from tailrace_impl_common import BlockDigest, HeadHasher, block_digest, next_spine
from tailrace_impl_server._journal import (
    RECORDS_OFFSET,
    SLOT_OFFSETS,
    SLOT_SIZE,
    Slot,
    pack_records,
    pack_slot,
    slot_offset,
    unpack_slot,
)
from tailrace_server_api import BLOCK_SIZE, Snapshot

_RECORDS_AT_ONCE = 65536


def enlarge(folder: Path, size: int) -> bytes:
    """Make an interrupted upload one of ``size`` zeros, and return its head.

    Args:
        folder: The folder of a resource that no server uses.
        size: Its new size in bytes.
    """
    os.truncate(folder / "data", size)
    digest = block_digest(bytes(BLOCK_SIZE))
    spine = bytes(16)
    blocks = size // BLOCK_SIZE
    with (folder / "journal").open("r+b") as journal:
        fixed = journal.read(RECORDS_OFFSET)
        found = [slot for start in SLOT_OFFSETS if (slot := unpack_slot(fixed[start : start + SLOT_SIZE]))]
        last = max(found, key=lambda slot: slot.snapshot.version)
        journal.seek(RECORDS_OFFSET)
        for first in range(0, blocks, _RECORDS_AT_ONCE):
            records = []
            for number in range(first, min(first + _RECORDS_AT_ONCE, blocks)):
                spine = next_spine(spine, digest)
                records.append(BlockDigest(number, digest, spine, 0))
            journal.write(pack_records(records))
        hasher = HeadHasher.resume(spine=spine, blocks=blocks, open_block=bytes(size % BLOCK_SIZE))
        for version in (last.snapshot.version + 1, last.snapshot.version + 2):
            snapshot = Snapshot(
                version=version,
                epoch=last.snapshot.epoch,
                state=ResourceState.IN_PROGRESS,
                reason=None,
                size=size,
                newlines=0,
                head=hasher.head(),
                open_line=False,
            )
            journal.seek(slot_offset(version))
            journal.write(pack_slot(Slot(snapshot, spine, hasher.open_digest(), last.boot_id, last.synced)))
    return hasher.head()
