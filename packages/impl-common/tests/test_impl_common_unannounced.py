"""What an upload keeps of what it has sent."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_impl_common import HeadHasher, head_of
from tailrace_impl_common._unannounced import SEGMENT_SIZE, Unannounced

KIB = 1024

sizes = st.integers(1, 40) | st.sampled_from([KIB, 16 * KIB - 1, 16 * KIB, 64 * KIB - 1, 64 * KIB, 200 * KIB])


def fill(kept: Unannounced, hasher: HeadHasher, data: bytes) -> None:
    kept.add(data, hasher)
    hasher.update(data)


@given(
    steps=st.lists(st.tuples(sizes, st.floats(0, 1)), min_size=1, max_size=30),
    where=st.floats(0, 1),
)
def test_any_offset_that_is_not_announced_can_be_continued(steps: list[tuple[int, float]], where: float) -> None:
    kept, hasher = Unannounced(), HeadHasher()
    source = b""
    announced = largest = 0
    for number, (size, share) in enumerate(steps):
        piece = bytes([number]) * size
        fill(kept, hasher, piece)
        source += piece
        largest = max(largest, size)
        announced += int(share * (len(source) - announced))
        kept.announce(announced)
        assert kept.size <= len(source) - announced + SEGMENT_SIZE + largest
    offset = announced + int(where * (len(source) - announced))
    state = kept.state_at(offset, hasher)
    assert state is not None
    assert (state.size, state.head()) == (offset, head_of(source[:offset]))
    again = kept.take_from(offset)
    assert b"".join(again) == source[offset:]
    for part in again:
        fill(kept, state, bytes(part))
    assert state.head() == head_of(source)
    # What is kept now continues as before.
    second = kept.state_at(offset, state)
    assert second is not None
    assert second.head() == head_of(source[:offset])
    assert b"".join(kept.take_from(offset)) == source[offset:]


def test_small_pieces_share_a_buffer_and_a_hash_state() -> None:
    kept, hasher = Unannounced(), HeadHasher()
    for _ in range(200_000):
        fill(kept, hasher, b"x")
    states = kept.states()
    assert [state.size for state in states] == [0, SEGMENT_SIZE, 2 * SEGMENT_SIZE, 3 * SEGMENT_SIZE]
    assert sum(len(segment.parts) for segment in kept._segments) == len(states)


def test_large_pieces_are_not_copied() -> None:
    kept, hasher = Unannounced(), HeadHasher()
    piece = bytes(SEGMENT_SIZE)
    fill(kept, hasher, piece)
    assert kept.take_from(0)[0] is piece


def test_a_bytearray_of_the_caller_is_never_written_to() -> None:
    kept, hasher = Unannounced(), HeadHasher()
    piece = bytearray(20 * KIB)
    kept.add(piece, hasher)
    hasher.update(piece)
    fill(kept, hasher, b"more")
    assert len(piece) == 20 * KIB
    assert b"".join(kept.take_from(0)) == piece + b"more"


def test_what_is_announced_is_let_go_of_in_full_segments() -> None:
    kept, hasher = Unannounced(), HeadHasher()
    for number in itertools.count(1):
        fill(kept, hasher, bytes(SEGMENT_SIZE))
        kept.announce(hasher.size)
        assert kept.size == 0
        if number == 3:
            break
    fill(kept, hasher, b"less")
    kept.announce(hasher.size)
    assert kept.size == 4
    assert kept.state_at(hasher.size - 5, hasher) is None
    kept.clear()
    assert (kept.size, kept.states()) == (0, [])


@pytest.mark.parametrize("offset", [0, 1, SEGMENT_SIZE, 2 * SEGMENT_SIZE - 1])
def test_what_was_taken_is_not_kept(offset: int) -> None:
    kept, hasher = Unannounced(), HeadHasher()
    for _ in range(2):
        fill(kept, hasher, bytes(SEGMENT_SIZE))
    kept.take_from(offset)
    assert kept.size == offset
