"""Verifying a stored resource against its digests, and repairing what the rest proves. All of it blocks.

The spine is a chain: whoever has the spine before a block, the block, and the spine behind it, knows that the block is
what was written even when its record is lost. So a damaged record is made good from data that a later record, or the
state, proves; bytes themselves can not be made good.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tailrace_common_api import ResourceState, StorageFailure
from tailrace_impl_common import BlockDigest, block_digest, count_newlines, make_head, next_spine
from tailrace_impl_server._filesystem_files import ResourceFiles
from tailrace_impl_server._filesystem_recovery import cut_to
from tailrace_impl_server._journal import (
    EMPTY_SPINE,
    RECORD_SIZE,
    RECORDS_OFFSET,
    SLOT_OFFSETS,
    SLOT_SIZE,
    JournalDamagedError,
    Slot,
    pack_header,
    pack_records,
    pack_slot,
    record_offset,
    slot_offset,
    unpack_header,
    unpack_record,
    unpack_slot,
)
from tailrace_impl_server._positional_io import read_up_to, sync_data, write_all
from tailrace_server_api import BLOCK_SIZE, Damage

DATA_DAMAGED = "data damaged"
"""Reason of the failure of an unfinished resource whose announced bytes are damaged."""

_PAUSE_AFTER = 256
"""Blocks after which a long verification lets its caller look around."""


def verify_files(files: ResourceFiles, *, line_access: bool, repair: bool) -> Iterator[Damage | None]:
    """Re-read a resource that nobody writes; yield what is damaged, and ``None`` now and then in between.

    Args:
        files: The open files, writable for a repair.
        line_access: What the description says of newlines.
        repair: Whether to make good what can be proven from the rest, and to end an unfinished resource FAILED whose
            announced bytes are damaged.

    Raises:
        OSError: The files cannot be read or written.
    """
    fixed = read_up_to(files.journal, RECORDS_OFFSET, 0)
    try:
        unpack_header(fixed)
    except JournalDamagedError as error:
        if repair:
            write_all(files.journal, [pack_header(line_access=line_access)], 0)
        yield Damage(None, str(error), repair)
    slots = {offset: unpack_slot(fixed[offset : offset + SLOT_SIZE].ljust(SLOT_SIZE, b"\0")) for offset in SLOT_OFFSETS}
    slot = max(filter(None, slots.values()), key=lambda slot: slot.snapshot.version, default=None)
    if slot is None:
        yield Damage(None, "both states in the journal are damaged")
        return
    scan = _Scan(files, slot, line_access, repair)
    yield from scan.blocks()
    for offset, found in slots.items():
        # Of a new resource only one of the two was ever written.
        if found is None and (slot.snapshot.version > 1 or any(fixed[offset : offset + SLOT_SIZE])):
            if repair:
                write_all(files.journal, [pack_slot(slot)], offset)
            yield Damage(None, f"the state at byte {offset} of the journal is damaged", repair)
    terminal = slot.snapshot.state.terminal
    if terminal:
        beyond = os.fstat(files.data).st_size - slot.snapshot.size
        if beyond > 0:
            if repair:
                cut_to(files, slot, sync=False)
            yield Damage(slot.snapshot.size, f"{beyond} bytes follow the end of the resource", repair)
    if not repair:
        return
    if scan.damaged and not terminal:
        _fail(files, slot)
        yield Damage(None, f"the unfinished resource is ended as failed: {DATA_DAMAGED}", repaired=True)
    sync_data(files.data)
    sync_data(files.journal)


def _fail(files: ResourceFiles, slot: Slot) -> None:
    """End an unfinished resource at its announced size."""
    version = slot.snapshot.version + 1
    snapshot = replace(slot.snapshot, version=version, state=ResourceState.FAILED, reason=DATA_DAMAGED)
    cut_to(files, slot, sync=True)
    ended = pack_slot(replace(slot, snapshot=snapshot))
    write_all(files.journal, [ended], slot_offset(version))
    sync_data(files.journal)
    write_all(files.journal, [ended], slot_offset(version + 1))


@dataclass(slots=True)
class _Scan:
    """One pass over the blocks of a resource."""

    files: ResourceFiles
    slot: Slot
    line_access: bool
    repair: bool
    damaged: bool = False
    """Whether bytes are damaged, or cannot be proven."""

    def blocks(self) -> Iterator[Damage | None]:
        size = self.slot.snapshot.size
        spine = EMPTY_SPINE
        newlines = 0
        # Blocks without a record: they count as soon as a later record, or the state, continues their spine.
        unproven: list[BlockDigest] = []
        for number in range(size // BLOCK_SIZE):
            if number % _PAUSE_AFTER == 0:
                yield None
            data = read_up_to(self.files.data, BLOCK_SIZE, number * BLOCK_SIZE)
            digest = block_digest(data) if len(data) == BLOCK_SIZE else b""
            if self.line_access:
                newlines += count_newlines(data)
            try:
                stored = read_up_to(self.files.journal, RECORD_SIZE, record_offset(number))
                record = unpack_record(stored, number)
            except JournalDamagedError:
                spine = next_spine(spine, digest)
                unproven.append(BlockDigest(number, digest, spine, newlines))
                continue
            proven = next_spine(spine, record.digest) == record.spine
            if unproven or not proven:
                yield from self._settle(unproven, proven=proven)
                unproven = []
            if digest != record.digest:
                yield self._bytes_damaged(number, data)
            spine, newlines = record.spine, record.newlines
        proven = spine == self.slot.spine
        if unproven or not proven:
            yield from self._settle(unproven, proven=proven)
        yield from self._open_block()

    def _settle(self, unproven: list[BlockDigest], *, proven: bool) -> Iterator[Damage]:
        """Judge the blocks without a record before a place where the spine is known again."""
        if not unproven:
            self.damaged = True
            yield Damage(None, "the records of the journal do not follow from one another")
        if proven and self.repair:
            write_all(self.files.journal, [pack_records(unproven)], record_offset(unproven[0].number))
        self.damaged = self.damaged or not proven
        for block in unproven:
            problem = "its record is damaged" if proven else "its record is damaged, and nothing proves its bytes"
            yield Damage(block.number * BLOCK_SIZE, problem, proven and self.repair)

    def _bytes_damaged(self, number: int, data: bytes) -> Damage:
        self.damaged = True
        offset = number * BLOCK_SIZE
        if len(data) < BLOCK_SIZE:
            return Damage(offset, f"the stored bytes end at {offset + len(data)}, below the announced size")
        return Damage(offset, "the stored bytes do not have their digest")

    def _open_block(self) -> Iterator[Damage]:
        size = self.slot.snapshot.size
        length = size % BLOCK_SIZE
        if length:
            data = read_up_to(self.files.data, length, size - length)
            if len(data) < length or block_digest(data) != self.slot.open_digest:
                self.damaged = True
                yield Damage(size - length, "the stored bytes do not have their digest")
        if make_head(self.slot.spine, self.slot.open_digest, size) != self.slot.snapshot.head:
            self.damaged = True
            yield Damage(None, "the head does not follow from the digests")


def open_for_verification(folder: Path, *, repair: bool) -> ResourceFiles:
    """Open the files of a resource.

    Raises:
        StorageFailure: One of them is missing.
        OSError: They cannot be opened.
    """
    try:
        return ResourceFiles(folder, writable=repair)
    except FileNotFoundError as error:
        raise StorageFailure(f"{os.path.basename(error.filename)} is missing") from None
