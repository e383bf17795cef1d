import io
import itertools
import json
import random
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import IntegrityError, InvalidArgument
from tailrace_impl_common._blocks import BLOCK_SIZE, chunk_hash
from tailrace_impl_common._buffers import Buffer
from tailrace_impl_common._head import (
    EMPTY_HEAD,
    EMPTY_SPINE,
    BlockDigest,
    HeadHasher,
    hash_file,
    head_of,
    head_of_file,
    make_head,
    next_spine,
)

HERE = Path(__file__).parent
REFERENCE = runpy.run_path(str(HERE / "make_head_vectors.py"))


def reference_head(data: bytes) -> bytes:
    head: str = REFERENCE["head_by_definition"](data)["head"]
    return bytes.fromhex(head)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Bytes around block boundaries, with newlines at a drawn distance."""
    size = draw(
        st.one_of(
            st.integers(0, 300),
            st.sampled_from([BLOCK_SIZE * k + d for k in (1, 2, 3) for d in (-1, 0, 1, 1000)]),
        )
    )
    period = draw(st.sampled_from([1, 2, 7, 100, 5000, 200_000]))
    data = bytearray((i * 31 + 11) % 251 for i in range(251)) * (size // 251 + 1)
    del data[size:]
    data[period - 1 :: period] = b"\n" * len(data[period - 1 :: period])
    return bytes(data)


def cut(data: bytes, points: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def test_the_head_of_the_empty_resource_is_the_published_one() -> None:
    assert EMPTY_HEAD.hex() == "10e45c7ce2292320743df94ee4c78a2a"
    assert HeadHasher().head() == EMPTY_HEAD
    assert head_of(b"") == EMPTY_HEAD


def test_the_published_vectors_are_current_and_met() -> None:
    published = json.loads((HERE / "head_vectors.json").read_text())
    assert published == REFERENCE["vectors"]()
    for vector in published["vectors"]:
        hasher = HeadHasher()
        data = REFERENCE["pattern"](vector["size"])
        hasher.update(data)
        assert chunk_hash(data).hex() == vector["chunk_hash"]
        assert hasher.size == vector["size"]
        assert hasher.blocks == vector["blocks"]
        assert hasher.spine.hex() == vector["spine"]
        assert hasher.open_digest().hex() == vector["open_digest"]
        assert hasher.head().hex() == vector["head"]


@given(data=contents(), points=st.lists(st.integers(0, 2**20), max_size=8))
def test_any_chunking_gives_the_same_head_newlines_and_blocks(data: bytes, points: list[int]) -> None:
    hasher = HeadHasher(count_newlines=True)
    blocks: list[BlockDigest] = []
    prefix = b""
    for piece in cut(data, points):
        blocks += hasher.update(piece)
        prefix += piece
        assert hasher.size == len(prefix)
        assert hasher.head() == reference_head(prefix)
        assert hasher.newlines == prefix.count(b"\n")
        assert hasher.ends_with_newline == prefix.endswith(b"\n")
    assert hasher.head() == reference_head(data) == head_of(data)
    spine = EMPTY_SPINE
    assert [block.number for block in blocks] == list(range(len(data) // BLOCK_SIZE))
    for block in blocks:
        bytes_of_block = data[block.number * BLOCK_SIZE : (block.number + 1) * BLOCK_SIZE]
        alone = HeadHasher()
        alone.update(bytes_of_block[:-1])
        assert alone.open_digest() != block.digest
        spine = next_spine(spine, block.digest)
        assert block.spine == spine
        assert block.newlines == data.count(b"\n", 0, (block.number + 1) * BLOCK_SIZE)
    assert spine == hasher.spine
    assert make_head(spine, hasher.open_digest(), len(data)) == hasher.head()


def state(hasher: HeadHasher) -> tuple[object, ...]:
    return hasher.head(), hasher.spine, hasher.blocks, hasher.newlines, hasher.ends_with_newline, hasher.size


@given(
    data=contents(),
    points=st.lists(st.integers(0, 2**20), max_size=4),
    kind=st.sampled_from([bytes, bytearray, memoryview]),
    counting=st.booleans(),
)
def test_chunks_are_hashed_on_the_way_as_they_are_apart(
    data: bytes, points: list[int], kind: Callable[[bytes], Buffer], counting: bool
) -> None:
    plain, hashed, verified = (HeadHasher(count_newlines=counting) for _ in range(3))
    for piece in cut(data, points):
        blocks = plain.update(kind(piece))
        own, found = hashed.update_hashed(kind(piece))
        assert own == chunk_hash(piece)
        assert list(found) == list(verified.update_verified(kind(piece), own)) == list(blocks)
        assert state(hashed) == state(verified) == state(plain)
    assert plain.head() == reference_head(data)


@pytest.mark.parametrize("before", [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1])
@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        16,
        240,
        241,
        BLOCK_SIZE - 1,
        BLOCK_SIZE,
        BLOCK_SIZE + 1,
        8 * BLOCK_SIZE,
        9 * BLOCK_SIZE,
        20 * BLOCK_SIZE - 7,
    ],
)
def test_chunks_of_any_size_at_any_place_are_hashed_on_the_way(before: int, size: int) -> None:
    data = random.Random(before + size).randbytes(before + size)
    hasher, plain = HeadHasher(count_newlines=True), HeadHasher(count_newlines=True)
    hasher.update(data[:before])
    for start in range(0, before + size, 5000):
        plain.update(data[start : start + 5000])
    known = state(hasher)
    for wrong in (b"", bytes(8), chunk_hash(data[before:])[::-1], chunk_hash(data[before:] + b"x")):
        with pytest.raises(IntegrityError) as caught:
            hasher.update_verified(data[before:], wrong)
        assert caught.value.offset == before
        assert state(hasher) == known
    own, blocks = hasher.copy().update_hashed(data[before:])
    assert own == chunk_hash(data[before:])
    assert list(hasher.update_verified(data[before:], own)) == list(blocks)
    assert [block.number for block in blocks] == list(range(before // BLOCK_SIZE, (before + size) // BLOCK_SIZE))
    assert [block.newlines for block in blocks] == [
        data.count(b"\n", 0, (block.number + 1) * BLOCK_SIZE) for block in blocks
    ]
    assert state(hasher) == state(plain)


@pytest.mark.parametrize("size", [10, BLOCK_SIZE + 1])
def test_what_is_handed_in_can_change_its_size_afterwards(size: int) -> None:
    data = bytearray(size)
    hasher = HeadHasher(count_newlines=True)
    hasher.update_verified(data, hasher.copy().update_hashed(data)[0])
    hasher.update(data)
    # Refused while anything refers to its memory.
    data.clear()
    assert hasher.size == 2 * size


@given(data=contents(), at=st.integers(0, 2**20), counting=st.booleans())
def test_a_copy_and_a_restart_continue_like_the_original(data: bytes, at: int, counting: bool) -> None:
    at %= len(data) + 1
    original = HeadHasher(count_newlines=counting)
    original.update(data[:at])
    copy = original.copy()
    restarted = HeadHasher.resume(
        spine=original.spine,
        blocks=original.blocks,
        open_block=data[original.blocks * BLOCK_SIZE : at],
        newlines=original.newlines,
        ends_with_newline=original.ends_with_newline,
        count_newlines=counting,
    )
    before = original.head()
    assert restarted.head() == copy.head() == before
    records = original.update(data[at:])
    assert copy.head() == before, "the copy is not independent of the original"
    for other in (copy, restarted):
        assert list(other.update(data[at:])) == list(records)
        assert other.head() == original.head()
        assert other.newlines == original.newlines == (data.count(b"\n") if counting else 0)
        assert other.ends_with_newline == original.ends_with_newline
        assert other.size == len(data)


def test_a_restart_with_an_impossible_state_is_refused() -> None:
    state: dict[str, Any] = {"spine": EMPTY_SPINE, "blocks": 1, "ends_with_newline": False}
    HeadHasher.resume(**state, count_newlines=True)
    for wrong in (
        {"spine": b"short"},
        {"blocks": -1},
        {"open_block": bytes(BLOCK_SIZE)},
        {"newlines": -1},
        {"ends_with_newline": None, "count_newlines": True},
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - a ValueError and no other tells of a wrong state
            HeadHasher.resume(**(state | wrong))
    # Where the last byte is at hand, or does not matter, nobody has to say what it is.
    known = HeadHasher.resume(**(state | {"open_block": b"a\n", "ends_with_newline": None}), count_newlines=True)
    assert known.ends_with_newline
    HeadHasher.resume(**(state | {"ends_with_newline": None}))


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda data: memoryview(data).cast("B", [100, len(data) // 100])]
)
def test_every_kind_of_buffer_is_taken(kind: Any) -> None:
    data = (b"x" * 79 + b"\n") * 5000
    hasher = HeadHasher(count_newlines=True)
    hasher.update(kind(data[:300]))
    hasher.update(kind(data[300:]))
    assert (hasher.head(), hasher.newlines, hasher.size) == (reference_head(data), 5000, len(data))


def test_what_is_no_buffer_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="text"):
        HeadHasher().update("text")  # type: ignore[arg-type]  # what a user without types may do
    with pytest.raises(InvalidArgument, match="contiguous"):
        HeadHasher().update(memoryview(b"abcdef")[::2])


def test_files_and_file_objects_have_the_head_of_their_bytes(tmp_path: Path) -> None:
    data = REFERENCE["pattern"](300_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert head_of_file(path) == head_of_file(str(path)) == reference_head(data)
    assert head_of_file(path, limit=131_073) == reference_head(data[:131_073])
    assert head_of_file(path, limit=0) == EMPTY_HEAD
    assert hash_file(path, limit=10**9).size == 300_000
    assert hash_file(path, count_newlines=True).newlines == data.count(b"\n")
    file = io.BytesIO(data)
    file.seek(5)
    assert head_of_file(file, limit=1000) == reference_head(data[5:1005])
    assert file.tell() == 1005
    assert not file.closed
