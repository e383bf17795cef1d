"""What followers share is what they would have been sent anyway, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from tailrace_common_api import Checkpoint, ResourceState
from tailrace_impl_common import EMPTY_HEAD, EncodedOnce, chunk_hash
from tailrace_impl_common._download_machine import DownloadSender
from tailrace_impl_common._shared_chunk import SharedChunk
from tailrace_impl_common.messages import Chunk
from tailrace_server_api import Snapshot

DATA = b"a line\n"
HASH = chunk_hash(DATA)
SNAPSHOT = Snapshot(1, 0, ResourceState.IN_PROGRESS, None, 7, 1, EMPTY_HEAD, False)
CHECKPOINT = SNAPSHOT.checkpoint
REAL = Chunk(0, DATA, HASH, b"before..", CHECKPOINT)


def test_who_needs_the_same_gets_the_same_object() -> None:
    shared = SharedChunk()
    first = shared.chunk(*REAL)
    assert first == REAL
    assert shared.chunk(*REAL) is first


@pytest.mark.parametrize(
    "other",
    [
        REAL._replace(offset=7),
        REAL._replace(data=bytes(bytearray(DATA))),
        REAL._replace(data=b"others\n"),
        REAL._replace(hash=b"another."),
        REAL._replace(previous=b""),
        REAL._replace(previous=b"another."),
        REAL._replace(checkpoint=None),
        REAL._replace(checkpoint=Checkpoint(7, 0, EMPTY_HEAD)),
    ],
)
def test_who_needs_something_else_gets_that(other: Chunk) -> None:
    shared = SharedChunk()
    for chunk in (REAL, other, REAL):
        assert shared.chunk(*chunk) == chunk


def test_a_checkpoint_belongs_to_its_snapshot_and_to_its_end() -> None:
    shared = SharedChunk()
    later = replace(SNAPSHOT, version=2, size=9, head=bytes(16))
    of_another = replace(SNAPSHOT, newlines=0)
    for snapshots in permutations((SNAPSHOT, later, of_another)):
        for snapshot in snapshots:
            assert shared.checkpoint_at(snapshot.size, snapshot) == snapshot.checkpoint
            assert shared.checkpoint_at(snapshot.size - 1, snapshot) is None
    assert shared.checkpoint_at(7, SNAPSHOT) is shared.checkpoint_at(7, SNAPSHOT)


def _told(shared: SharedChunk, snapshot: Snapshot = SNAPSHOT) -> Chunk:
    """Return the chunk that a first follower was sent."""
    return shared.chunk(0, DATA, HASH, b"before..", shared.checkpoint_at(7, snapshot))


def test_the_next_follower_gets_what_the_last_one_was_sent_without_a_look_at_the_resource() -> None:
    shared = SharedChunk()
    assert shared.again(0, b"before..", SNAPSHOT, 7) is None
    first = _told(shared)
    assert shared.again(0, b"before..", SNAPSHOT, 7) is first
    assert shared.again(0, b"before..", SNAPSHOT, 8) is first


@pytest.mark.parametrize(
    ("offset", "previous", "most"), [(7, b"before..", 7), (0, b"", 7), (0, b"another.", 7), (0, b"before..", 6)]
)
def test_who_is_elsewhere_or_wants_less_gets_nothing_of_it(offset: int, previous: bytes, most: int) -> None:
    shared = SharedChunk()
    _told(shared)
    assert shared.again(offset, previous, SNAPSHOT, most) is None


def test_what_belongs_to_another_announcement_is_not_given_out() -> None:
    shared = SharedChunk()
    first = _told(shared)
    # Equal to the other in every value, as an announcement of another resource may be.
    other = replace(SNAPSHOT)
    assert shared.again(0, b"before..", other, 7) is None
    # Somebody has looked for the checkpoint of the other one, and the chunk is still that of the first.
    shared.checkpoint_at(7, other)
    assert shared.again(0, b"before..", other, 7) is None
    assert shared.again(0, b"before..", SNAPSHOT, 7) is None
    assert _told(shared, other) == first
    assert shared.again(0, b"before..", other, 7) == first


def test_a_chunk_that_ends_before_the_announcement_is_read_by_each() -> None:
    shared = SharedChunk()
    later = replace(SNAPSHOT, version=2, size=9, head=bytes(16))
    shared.checkpoint_at(9, later)
    shared.chunk(0, DATA, HASH, b"", shared.checkpoint_at(7, later))
    assert shared.again(0, b"", later, 9) is None


def test_a_machine_goes_on_behind_the_chunk_that_it_shares() -> None:
    shared = SharedChunk()
    first, second, elsewhere = (DownloadSender(offset=offset, window=0) for offset in (0, 0, 1))
    chunk = first.chunk(DATA, HASH, shared.checkpoint_at(7, SNAPSHOT), shared)
    assert second.chunk_again(shared, SNAPSHOT, 100) is chunk
    assert (second.offset, second.previous) == (first.offset, first.previous) == (7, HASH)
    assert second.chunk_again(shared, SNAPSHOT, 100) is None
    assert elsewhere.chunk_again(shared, SNAPSHOT, 100) is None
    assert (second.offset, elsewhere.offset, elsewhere.previous) == (7, 1, b"")


def test_machines_at_the_same_place_share_and_others_keep_their_own_chain() -> None:
    shared = SharedChunk()
    together = [DownloadSender(offset=0, window=0) for _ in range(2)]
    elsewhere = DownloadSender(offset=7, window=0)
    late = DownloadSender(offset=7, window=0)
    late.chunk(b"of its own", b"own hash", None)
    for sender in together:
        sender.chunk(DATA, HASH, None, shared)
    one, two = (sender.chunk(DATA, HASH, None, shared) for sender in together)
    assert one is two
    assert (one.offset, one.previous) == (7, HASH)
    # The same bytes at the same offset, first of their transfer; and behind another chunk.
    assert elsewhere.chunk(DATA, HASH, None, shared) == Chunk(7, DATA, HASH, b"", None)
    assert late.chunk(DATA, HASH, None, shared) == Chunk(17, DATA, HASH, b"own hash", None)


def test_a_chunk_is_encoded_once_for_all_in_a_row() -> None:
    encoded: list[Chunk] = []

    def encode(chunk: Chunk) -> bytes:
        encoded.append(chunk)
        return b"%d" % len(encoded)

    once = EncodedOnce(encode, largest=len(DATA))
    equal = Chunk(*REAL)
    assert [once.of(REAL), once.of(REAL), once.of(equal), once.of(equal)] == [b"1", b"1", b"2", b"2"]
    assert once.of(REAL) == b"3"


def test_nothing_large_is_kept() -> None:
    encoded: list[Chunk] = []

    def encode(chunk: Chunk) -> int:
        encoded.append(chunk)
        return len(encoded)

    once = EncodedOnce(encode, largest=len(DATA) - 1)
    assert [once.of(REAL), once.of(REAL)] == [1, 2]
