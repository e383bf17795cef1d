"""Searching the records of blocks for a newline: what is found, and after how many looks."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import DamagedBlock
from tailrace_impl_common import BlockDigest
from tailrace_impl_server._journal import RECORD_SIZE, pack_records
from tailrace_impl_server._newline_search import GUESSES, RECORDS_AROUND, search_newline
from tailrace_server_api import BLOCK_SIZE, Boundary


class Records:
    """Records of blocks that end with so many newlines; counts how often they are read."""

    def __init__(self, newlines: Sequence[int]) -> None:
        self.newlines = newlines
        self.looks = 0
        self.damaged: set[int] = set()

    def read(self, block: int, count: int) -> bytes:
        assert 0 <= block < block + count <= len(self.newlines)
        assert count <= 2 * RECORDS_AROUND + 1
        self.looks += 1
        packed = bytearray()
        for number in range(block, block + count):
            record = pack_records([BlockDigest(number, bytes(16), number.to_bytes(16, "big"), self.newlines[number])])
            packed += bytes(RECORD_SIZE) if number in self.damaged else record
        return bytes(packed)

    def search(self, newlines: int) -> Boundary:
        self.looks = 0
        return search_newline(newlines, len(self.newlines), self.read)

    def expected(self, newlines: int) -> int:
        """Return how many blocks end with fewer newlines."""
        return bisect_left(self.newlines, newlines)


@given(
    counts=st.lists(st.one_of(st.just(0), st.integers(0, 3), st.integers(0, BLOCK_SIZE)), max_size=400),
    data=st.data(),
)
def test_the_block_is_found_whatever_the_lines_are_like(counts: list[int], data: st.DataObject) -> None:
    records = Records(list(accumulate(counts)))
    most = records.newlines[-1] if counts else 0
    wanted = data.draw(st.integers(1, most + 2))
    found = records.search(wanted)
    blocks = records.expected(wanted)
    assert found.offset == blocks * BLOCK_SIZE
    assert found.newlines == (records.newlines[blocks - 1] if blocks else 0)
    assert records.looks <= 1 + GUESSES + math.log2(max(1, len(counts))) + 1


@pytest.mark.parametrize("blocks", [100, 10_000, 1_000_000])
def test_among_lines_of_about_equal_length_two_looks_are_enough(blocks: int) -> None:
    lines_per_block = BLOCK_SIZE // 10

    class Even(Sequence[int]):
        def __len__(self) -> int:
            return blocks

        def __getitem__(self, number: int) -> int:  # type: ignore[override]  # no slices are asked for
            return (number + 1) * lines_per_block + number % 7

    records = Records(Even())
    for block in (0, 1, blocks // 3, blocks // 2, blocks - 2):
        assert records.search((block + 1) * lines_per_block).offset == block * BLOCK_SIZE
        assert records.looks <= 2


def test_looks_grow_with_the_logarithm_where_the_rule_of_three_fails() -> None:
    # All lines are in the last blocks: the guesses are at the wrong end every time.
    most = 0
    for blocks in (1000, 100_000):
        counts = [0] * (blocks - 500) + [2**number for number in range(40)] + [0] * 459 + [1]
        records = Records(list(accumulate(counts)))
        for wanted in (1, 2**20, 2**39, 2**40 - 2):
            assert records.search(wanted).offset == records.expected(wanted) * BLOCK_SIZE
            most = max(most, records.looks)
    assert most <= 1 + GUESSES + math.log2(100_000)


def test_a_damaged_record_is_told_with_its_place() -> None:
    records = Records(range(1, 101))
    records.damaged.add(99)
    with pytest.raises(DamagedBlock) as raised:
        records.search(50)
    assert raised.value.offset == 99 * BLOCK_SIZE
    records.damaged = {49}
    with pytest.raises(DamagedBlock) as raised:
        records.search(50)
    assert raised.value.offset == 49 * BLOCK_SIZE


def test_nothing_is_read_of_a_resource_without_full_blocks() -> None:
    records = Records([])
    assert records.search(1) == Boundary(0, 0, bytes(16))
    assert records.looks == 0
