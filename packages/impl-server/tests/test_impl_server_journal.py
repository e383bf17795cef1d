"""The journal's format: what is written comes back, and damage is noticed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import ResourceState
from tailrace_impl_common import BlockDigest
from tailrace_impl_server._journal import (
    MAX_REASON,
    RECORD_SIZE,
    RECORDS_OFFSET,
    SLOT_OFFSETS,
    SLOT_SIZE,
    JournalDamagedError,
    Slot,
    boundary_behind,
    cut_reason,
    pack_header,
    pack_records,
    pack_slot,
    record_offset,
    slot_offset,
    unpack_header,
    unpack_record,
    unpack_slot,
)
from tailrace_server_api import BLOCK_SIZE, Snapshot

numbers = st.integers(min_value=0, max_value=2**63 - 1)
digests = st.binary(min_size=16, max_size=16)


@st.composite
def slots(draw: st.DrawFn) -> Slot:
    state = draw(st.sampled_from(ResourceState))
    size = draw(numbers | st.integers(0, 100).map(lambda blocks: blocks * BLOCK_SIZE))
    snapshot = Snapshot(
        version=draw(numbers),
        epoch=draw(numbers),
        state=state,
        reason=cut_reason(draw(st.text(max_size=300))) if state is ResourceState.FAILED else None,
        size=size,
        newlines=draw(numbers),
        head=draw(digests),
        open_line=draw(st.booleans()),
    )
    return Slot(snapshot, draw(digests), draw(digests) if size % BLOCK_SIZE else b"", draw(digests))


SLOT = Slot(
    Snapshot(
        version=7,
        epoch=2,
        state=ResourceState.FAILED,
        reason="why",
        size=BLOCK_SIZE + 1,
        newlines=3,
        head=b"h" * 16,
        open_line=True,
    ),
    b"s" * 16,
    b"o" * 16,
    b"b" * 16,
)


def test_the_parts_stand_where_the_format_says() -> None:
    assert SLOT_OFFSETS == (4096, 8192)
    assert SLOT_SIZE == 512
    assert RECORDS_OFFSET == 12288
    assert RECORD_SIZE == 48
    assert [slot_offset(version) for version in range(4)] == [4096, 8192, 4096, 8192]
    assert record_offset(0) == 12288
    assert record_offset(10) == 12288 + 480
    assert len(pack_header(line_access=True)) <= 4096


@given(slots())
def test_a_slot_comes_back_as_it_was_packed(slot: Slot) -> None:
    packed = pack_slot(slot)
    assert len(packed) == SLOT_SIZE
    assert unpack_slot(packed) == slot


@given(slots(), st.data())
def test_a_slot_with_a_flipped_bit_is_none(slot: Slot, data: st.DataObject) -> None:
    packed = bytearray(pack_slot(slot))
    reason = b"" if slot.snapshot.reason is None else slot.snapshot.reason.encode()
    bit = data.draw(st.integers(0, (108 + len(reason)) * 8 - 1))
    packed[bit // 8] ^= 1 << bit % 8
    assert unpack_slot(bytes(packed)) is None


def test_a_slot_that_is_cut_or_was_never_written_is_none() -> None:
    packed = pack_slot(SLOT)
    for end in range(108 + len("why")):
        assert unpack_slot(packed[:end]) is None
    assert unpack_slot(bytes(SLOT_SIZE)) is None


@given(slots(), slots(), st.integers(0, SLOT_SIZE))
def test_a_torn_slot_is_none_or_one_of_the_two(old: Slot, new: Slot, torn_at: int) -> None:
    packed = pack_slot(new)[:torn_at] + pack_slot(old)[torn_at:]
    assert unpack_slot(packed) in (None, old, new)


@given(st.lists(st.tuples(digests, digests, numbers), min_size=1, max_size=5), st.integers(0, 2**40))
def test_records_come_back_as_they_were_packed(parts: list[tuple[bytes, bytes, int]], first: int) -> None:
    blocks = [BlockDigest(first + number, *part) for number, part in enumerate(parts)]
    packed = pack_records(blocks)
    assert len(packed) == RECORD_SIZE * len(blocks)
    for number, block in enumerate(blocks):
        record = packed[number * RECORD_SIZE : (number + 1) * RECORD_SIZE]
        assert unpack_record(record, block.number) == block
        with pytest.raises(JournalDamagedError):
            unpack_record(record, block.number + 1)
        boundary = boundary_behind(block)
        assert (boundary.offset, boundary.newlines, boundary.spine) == (
            (block.number + 1) * BLOCK_SIZE,
            block.newlines,
            block.spine,
        )


def test_a_damaged_record_is_refused() -> None:
    packed = pack_records([BlockDigest(3, b"d" * 16, b"s" * 16, 9)])
    for bit in range(RECORD_SIZE * 8):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(JournalDamagedError):
            unpack_record(bytes(damaged), 3)
    for end in range(RECORD_SIZE):
        with pytest.raises(JournalDamagedError):
            unpack_record(packed[:end], 3)


def test_a_header_says_whether_newlines_are_counted() -> None:
    assert unpack_header(pack_header(line_access=True)) is True
    assert unpack_header(pack_header(line_access=False).ljust(4096, b"\0")) is False


def test_a_damaged_header_is_refused() -> None:
    packed = pack_header(line_access=True)
    for bit in range(len(packed) * 8):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(JournalDamagedError):
            unpack_header(bytes(damaged))
    with pytest.raises(JournalDamagedError):
        unpack_header(b"")


@given(st.text())
def test_a_cut_reason_is_a_start_that_fits(reason: str) -> None:
    cut = cut_reason(reason)
    assert len(cut.encode()) <= MAX_REASON
    assert cut == reason or (reason.startswith(cut) and len(cut.encode()) > MAX_REASON - 4)


def test_the_place_of_a_slot_is_that_of_its_version() -> None:
    for version in (1, 2, 3):
        snapshot = replace(SLOT.snapshot, version=version)
        assert slot_offset(version) != slot_offset(version + 1)
        unpacked = unpack_slot(pack_slot(replace(SLOT, snapshot=snapshot)))
        assert unpacked is not None
        assert unpacked.snapshot.version == version
