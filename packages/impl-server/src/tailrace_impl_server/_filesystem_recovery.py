"""Which state of a resource is proven by what is on disk. All of it blocks.

A slot counts when its CRC holds, the records of all blocks completed since the other slot hold theirs, the data
reaches to its size, and the open block gives its head; otherwise the other slot counts. So a recovery reads no data but
the open block, and no more of the journal than the slots and the records between them. A terminal slot is written after
everything below it is on disk and counts by itself.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from tailrace_common_api import StorageFailure
from tailrace_impl_common import HeadHasher
from tailrace_impl_server._filesystem_files import ResourceFiles
from tailrace_impl_server._journal import (
    EMPTY_SPINE,
    RECORD_SIZE,
    RECORDS_OFFSET,
    SLOT_OFFSETS,
    SLOT_SIZE,
    JournalDamagedError,
    Slot,
    record_offset,
    unpack_header,
    unpack_record,
    unpack_slot,
)
from tailrace_impl_server._positional_io import read_up_to, sync_data
from tailrace_server_api import BLOCK_SIZE

_log = logging.getLogger(__name__)

_RECORDS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Recovered:
    """The proven state of a resource, and what is needed to continue it."""

    slot: Slot
    """The slot that counts."""
    line_access: bool
    """Whether newlines are counted."""
    hasher: HeadHasher | None
    """Stands at the proven size; ``None`` for a resource that has ended, of which no data is read."""


def recover(files: ResourceFiles) -> Recovered:
    """Find the proven state of a resource that nobody writes; changes nothing.

    Raises:
        StorageFailure: The journal is damaged, or no state in it is proven.
        OSError: The files cannot be read.
    """
    fixed = read_up_to(files.journal, RECORDS_OFFSET, 0)
    try:
        line_access = unpack_header(fixed)
    except JournalDamagedError as error:
        raise StorageFailure(f"{files.folder.name}: {error}") from error
    slots = [slot for offset in SLOT_OFFSETS if (slot := unpack_slot(fixed[offset : offset + SLOT_SIZE]))]
    slots.sort(key=lambda slot: slot.snapshot.version, reverse=True)
    for slot, other in zip(slots, [*slots[1:], None], strict=False):
        if slot.snapshot.state.terminal:
            return Recovered(slot, line_access, None)
        hasher = _proven(files, slot, other, line_access)
        if hasher is not None:
            return Recovered(slot, line_access, hasher)
        _log.warning("State %s of resource %s is not proven", slot.snapshot.version, files.folder.name)
    raise StorageFailure(f"{files.folder.name}: no state in the journal is proven by what is stored")


def _proven(files: ResourceFiles, slot: Slot, other: Slot | None, line_access: bool) -> HeadHasher | None:
    """Return a hasher at the size of ``slot`` if what is stored proves the slot."""
    snapshot = slot.snapshot
    size = snapshot.size
    blocks = size // BLOCK_SIZE
    # What stood before the other slot was proven when that one was written; with no other slot to start from, the last
    # record is the one that is needed to continue.
    since = min(other.snapshot.size // BLOCK_SIZE if other else blocks, max(0, blocks - 1))
    if os.fstat(files.data).st_size < size:
        return None
    try:
        spine = _spine_behind(files, since, blocks)
    except JournalDamagedError:
        return None
    if spine != slot.spine:
        return None
    open_size = size % BLOCK_SIZE
    open_block = read_up_to(files.data, open_size, size - open_size) if open_size else b""
    if len(open_block) != open_size:
        return None
    hasher = HeadHasher.resume(
        spine=spine,
        blocks=blocks,
        open_block=open_block,
        newlines=snapshot.newlines,
        ends_with_newline=size > 0 and not snapshot.open_line,
        count_newlines=line_access,
    )
    return hasher if hasher.head() == snapshot.head else None


def _spine_behind(files: ResourceFiles, since: int, blocks: int) -> bytes:
    """Check the records of blocks ``[since, blocks)`` and return the spine behind the last."""
    spine = EMPTY_SPINE
    for first in range(since, blocks, _RECORDS_AT_ONCE):
        count = min(_RECORDS_AT_ONCE, blocks - first)
        data = read_up_to(files.journal, count * RECORD_SIZE, record_offset(first))
        for number in range(count):
            start = number * RECORD_SIZE
            spine = unpack_record(data[start : start + RECORD_SIZE], first + number).spine
    return spine


def cut_to(files: ResourceFiles, slot: Slot, *, sync: bool) -> None:
    """Remove what is stored beyond a slot, so that nothing stale is taken for new later.

    Args:
        files: Writable files.
        slot: What stays.
        sync: Whether to wait for the disk even if nothing had to be removed.

    Raises:
        OSError: The files cannot be changed.
    """
    size = slot.snapshot.size
    for fd, end in ((files.data, size), (files.journal, record_offset(size // BLOCK_SIZE))):
        beyond = os.fstat(fd).st_size > end
        if beyond:
            os.ftruncate(fd, end)
        if beyond or sync:
            sync_data(fd)
