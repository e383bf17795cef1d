"""Which state of a resource is proven by what is on disk. All of it blocks.

A slot counts when its CRC holds, the records of all blocks completed since the other slot hold theirs, the data
reaches to its size, and the open block gives its head; otherwise the other slot counts. So a recovery reads no data but
the open block, and no more of the journal than the slots and the records between them. A terminal slot is written after
everything below it is on disk and counts by itself.

What was written under another boot of the system, and not synced, may have lost any part of itself with the power: then
all blocks are read, and the longest prefix counts that a slot or the records prove.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace

from tailrace_common_api import StorageFailure
from tailrace_impl_common import HeadHasher, block_digest, next_spine
from tailrace_impl_server._filesystem_files import ResourceFiles
from tailrace_impl_server._journal import (
    EMPTY_SPINE,
    NO_BOOT_ID,
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
    next_version: int
    """Version of the next state: its slot does not replace the one that counts."""
    in_full: bool = False
    """Whether all data was verified, so that the state has to be stored anew, for this boot, before it is told."""


def recover(files: ResourceFiles, *, boot_id: bytes = NO_BOOT_ID) -> Recovered:
    """Find the proven state of a resource that nobody writes; changes nothing.

    Args:
        files: The open files.
        boot_id: Which boot of the system this is; when it is known, what may have been lost with the power is verified
            in full.

    Raises:
        StorageFailure: The journal is damaged, or no state in it is proven.
        OSError: The files cannot be read.
    """
    line_access, slots = read_slots(files)
    if slots and _lost_power(slots[0], boot_id):
        return recover_in_full(files, line_access, slots)
    for slot, other in zip(slots, [*slots[1:], None], strict=False):
        if slot.snapshot.state.terminal:
            return Recovered(slot, line_access, None, slot.snapshot.version + 1)
        hasher = _proven(files, slot, other, line_access)
        if hasher is not None:
            return Recovered(slot, line_access, hasher, slot.snapshot.version + 1)
        _log.warning("State %s of resource %s is not proven", slot.snapshot.version, files.folder.name)
    raise StorageFailure(f"{files.folder.name}: no state in the journal is proven by what is stored")


def read_slots(files: ResourceFiles) -> tuple[bool, list[Slot]]:
    """Return whether newlines are counted, and the states in the journal, the newest first.

    Raises:
        StorageFailure: The header of the journal is damaged.
        OSError: The journal cannot be read.
    """
    fixed = read_up_to(files.journal, RECORDS_OFFSET, 0)
    try:
        line_access = unpack_header(fixed)
    except JournalDamagedError as error:
        raise StorageFailure(f"{files.folder.name}: {error}") from error
    slots = [slot for offset in SLOT_OFFSETS if (slot := unpack_slot(fixed[offset : offset + SLOT_SIZE]))]
    slots.sort(key=lambda slot: slot.snapshot.version, reverse=True)
    return line_access, slots


def _lost_power(newest: Slot, boot_id: bytes) -> bool:
    if newest.snapshot.state.terminal or newest.synced or NO_BOOT_ID in (newest.boot_id, boot_id):
        return False
    return newest.boot_id != boot_id


def recover_in_full(files: ResourceFiles, line_access: bool, slots: list[Slot]) -> Recovered:
    """Find the longest prefix that is proven, by a slot or by the records; reads all data and changes nothing.

    Args:
        files: The open files of a resource that has not ended.
        line_access: Whether newlines are counted.
        slots: At least one state, the newest first.

    Raises:
        OSError: The files cannot be read.
    """
    newest = slots[0]
    blocks, spine, newlines, last = 0, EMPTY_SPINE, 0, b""
    spines = {0: EMPTY_SPINE}
    for number in range(max(slot.snapshot.size for slot in slots) // BLOCK_SIZE):
        data = read_up_to(files.data, BLOCK_SIZE, number * BLOCK_SIZE)
        try:
            record = unpack_record(read_up_to(files.journal, RECORD_SIZE, record_offset(number)), number)
        except JournalDamagedError:
            break
        digest = block_digest(data)
        if len(data) < BLOCK_SIZE or digest != record.digest or next_spine(spine, digest) != record.spine:
            break
        blocks, spine, newlines, last = number + 1, record.spine, record.newlines, data[-1:]
        if any(slot.snapshot.size // BLOCK_SIZE == blocks for slot in slots):
            spines[blocks] = spine
    for slot in slots:
        snapshot = slot.snapshot
        if snapshot.size < blocks * BLOCK_SIZE or spines.get(snapshot.size // BLOCK_SIZE) != slot.spine:
            continue
        hasher = _proven(files, slot, None, line_access)
        if hasher is not None:
            version = newest.snapshot.version + (1 if slot is newest else 2)
            break
    else:
        hasher = HeadHasher.resume(
            spine=spine,
            blocks=blocks,
            newlines=newlines,
            ends_with_newline=last == b"\n",
            count_newlines=line_access,
        )
        snapshot = replace(
            newest.snapshot,
            size=hasher.size,
            newlines=hasher.newlines,
            head=hasher.head(),
            open_line=line_access and hasher.size > 0 and not hasher.ends_with_newline,
        )
        slot = replace(newest, snapshot=snapshot, spine=spine, open_digest=b"")
        version = newest.snapshot.version + 2
    lost = newest.snapshot.size - slot.snapshot.size
    if lost > 0:
        _log.error(
            "Resource %s lost its last %s announced bytes with the power; %s are left",
            files.folder.name,
            lost,
            slot.snapshot.size,
        )
    # The epoch never goes back, whichever state counts.
    slot = replace(slot, snapshot=replace(slot.snapshot, epoch=newest.snapshot.epoch))
    return Recovered(slot, line_access, hasher, version, in_full=True)


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
    cut = shorten_to(files, slot)
    for fd in (files.data, files.journal) if sync else cut:
        sync_data(fd)


def shorten_to(files: ResourceFiles, slot: Slot) -> list[int]:
    """Remove what is stored beyond a slot, without waiting for the disk; return the descriptors of what was cut.

    Raises:
        OSError: The files cannot be changed.
    """
    size = slot.snapshot.size
    cut = []
    for fd, end in ((files.data, size), (files.journal, record_offset(size // BLOCK_SIZE))):
        if os.fstat(fd).st_size > end:
            os.ftruncate(fd, end)
            cut.append(fd)
    return cut
