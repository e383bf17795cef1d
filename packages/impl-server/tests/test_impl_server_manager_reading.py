import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from impl_server_manager_bench import LINES, MIB, Bench, Uploader, ended, follow, read_all, reading, turned, upload

from tailrace_common_api import (
    InvalidArgument,
    LineAccessDisabled,
    LineRangeNotSatisfiable,
    Metadata,
    Position,
    RangeNotSatisfiable,
    StorageFailure,
)
from tailrace_impl_common import chunk_hash, head_of
from tailrace_impl_server._memory_storage import MemoryStorage
from tailrace_impl_server._pieces import PieceCache, PieceSource
from tailrace_impl_server._shared_tail import SharedTail, TailBudget
from tailrace_server_api import BLOCK_SIZE, Piece

BINARY = Metadata(name="data.bin")


def tail_of(limit: int, *, total: int = 1 << 40) -> SharedTail:
    return SharedTail(limit, TailBudget(total))


def put(tail: SharedTail, offset: int, data: bytes, now: float = 0.0) -> None:
    tail.append(offset, data, chunk_hash(data), now)


def take(tail: SharedTail, start: int, end: int) -> bytes | None:
    piece, found_end = tail.find(start, end)
    if piece is None:
        if found_end == start:
            return None
        piece = tail.join(start, found_end)
    assert piece.hash == chunk_hash(piece.data)
    return bytes(piece.data)


@given(
    sizes=st.lists(st.integers(1, 200) | st.sampled_from([64 * 1024, 64 * 1024 - 1, 100_000]), min_size=1, max_size=40),
    limit=st.integers(0, 400_000),
    data=st.data(),
)
def test_a_tail_gives_what_was_put_in_and_stays_within_its_limit(
    sizes: list[int], limit: int, data: st.DataObject
) -> None:
    budget = TailBudget(1 << 40)
    tail = SharedTail(limit, budget)
    content = bytearray()
    for index, size in enumerate(sizes):
        chunk = bytes([index]) * size
        put(tail, len(content), chunk)
        content += chunk
        assert budget.used <= limit
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start + 1, len(content) + 10))
    got = take(tail, start, end)
    if got is not None:
        assert 0 < len(got) <= end - start
        assert content[start : start + len(got)] == got
        # All there is, unless a large chunk stands in the way.
        if max(sizes) < 64 * 1024:
            assert len(got) == min(end, len(content)) - start
    size = data.draw(st.integers(0, len(content)))
    tail.cut(size)
    assert take(tail, size, size + 1) is None or size < len(content)
    for offset in range(max(0, size - 3), size):
        byte = take(tail, offset, offset + 1)
        assert byte is None or byte == content[offset : offset + 1]
    tail.clear()
    assert budget.used == 0


def test_a_whole_chunk_is_handed_on_as_it_came() -> None:
    tail = tail_of(1 << 20)
    chunk = b"line\n"
    put(tail, 0, b"first\n")
    put(tail, 6, chunk)
    piece, _ = tail.find(6, 11)
    assert piece is not None
    assert piece.data is chunk
    large = bytes(100_000)
    put(tail, 11, large)
    # Large chunks are not joined with what follows.
    put(tail, 100_011, b"after\n")
    piece, end = tail.find(11, 100_017)
    assert piece is not None
    assert piece.data is large
    assert end == 100_011
    # Nor small ones with a large one.
    assert take(tail, 0, 100_017) == b"first\nline\n"


def test_the_total_of_tails_is_bounded_and_the_quietest_gives_way() -> None:
    budget = TailBudget(3_000)
    quiet, busy = SharedTail(1 << 20, budget), SharedTail(1 << 20, budget)
    put(quiet, 0, bytes(500))
    for number in range(20):
        put(busy, number * 500, bytes(500))
        assert budget.used <= 3_000
    assert take(quiet, 0, 500) is None
    assert take(busy, 9_500, 10_000) == bytes(500)


def test_idle_tails_are_emptied() -> None:
    budget = TailBudget(1 << 20)
    old, new = SharedTail(1 << 20, budget), SharedTail(1 << 20, budget)
    put(old, 0, b"old", now=1.0)
    put(new, 0, b"new", now=2.0)
    budget.clear_idle(1.5)
    assert take(old, 0, 3) is None
    assert take(new, 0, 3) == b"new"
    # An emptied tail goes on where it gets bytes again.
    put(old, 3, b"more", now=3.0)
    assert take(old, 3, 7) == b"more"


def test_the_piece_cache_is_bounded_and_drops_what_was_not_used() -> None:
    cache = PieceCache(100_000)
    for number in range(10):
        cache.put(("id", number, number + 1), Piece(bytes(40_000), bytes(8)))
        assert cache.get(("id", 0, 1)) is not None
    assert cache.get(("id", 9, 10)) is not None
    assert cache.get(("id", 5, 6)) is None
    cache.put(("id", 50, 60), Piece(bytes(100_001), bytes(8)))
    assert cache.get(("id", 50, 60)) is None


def test_the_piece_cache_counts_what_a_small_piece_costs() -> None:
    cache = PieceCache(100_000)
    for number in range(1000):
        cache.put(("id", number, number + 1), Piece(b"x", bytes(8)))
    assert sum(cache.get(("id", number, number + 1)) is not None for number in range(1000)) < 200


def test_the_piece_cache_counts_what_a_view_keeps() -> None:
    cache = PieceCache(100_000)
    for number in range(1000):
        cache.put(("id", number, number + 1), Piece(memoryview(bytes(30_000))[:10], bytes(8)))
    assert sum(cache.get(("id", number, number + 1)) is not None for number in range(1000)) == 3


async def test_a_thousand_followers_of_many_lines_cost_one_join() -> None:
    tail = tail_of(1 << 20)
    for number in range(100):
        put(tail, number * 6, b"line \n")
    source = PieceSource("id", MemoryStorage(), tail, PieceCache(1 << 20))
    source.readers = 1000
    pieces = {id(source.try_read(0, 600)) for _ in range(1000)}
    assert len(pieces) == 1


async def test_followers_of_one_line_get_the_uploaders_own_bytes(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))
    line = b"exactly these bytes\n"
    await uploader.send(line)
    await uploader.announced()
    async with reading(manager, uploader.id) as one, reading(manager, uploader.id) as other:
        first, second = one.try_read(0, len(line)), other.try_read(0, len(line))
        assert first is not None
        assert first is second
        assert bytes(first.data) == line
    await uploader.ingest.release()


async def test_what_is_not_announced_is_not_readable(bench: Bench) -> None:
    manager = await bench.start(checkpoint_interval=3600.0)
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"shown")
    await uploader.announced()
    await uploader.send(b"hidden")
    async with reading(manager, uploader.id) as reader:
        for start, end in ((0, 6), (5, 6), (-1, 3), (3, 3), (4, 2)):
            with pytest.raises(RangeNotSatisfiable) as raised:
                reader.try_read(start, end)
            assert raised.value.size == 5
            with pytest.raises(RangeNotSatisfiable):
                await reader.read(start, end)
        with pytest.raises(RangeNotSatisfiable):
            await reader.head(6)
    await uploader.ingest.release()


async def test_readers_of_one_range_share_one_read(bench: Bench) -> None:
    manager = await bench.start()
    status = await upload(manager, bytes(MIB))
    bench.storage.cached = False
    async with reading(manager, status.id) as reader, reading(manager, status.id) as other:
        bench.gates.shut("read")
        reads = [asyncio.create_task(at.read(0, MIB)) for at in (reader, other) for _ in range(50)]
        await bench.gates.arrival("read")
        # The one who reads for all goes away; somebody else does it then.
        reads[0].cancel()
        await asyncio.wait((reads[0],))
        bench.gates.open("read")
        pieces = await asyncio.gather(*reads[1:])
        assert len({id(piece) for piece in pieces}) == 1
        assert bench.gates.calls["read"] == 2
        assert bytes(pieces[0].data) == bytes(MIB)


async def test_a_failed_read_fails_for_each_who_asked(bench: Bench) -> None:
    manager = await bench.start()
    status = await upload(manager, b"data")
    bench.storage.cached = False
    bench.gates.failures["read"] = StorageFailure("disk on fire")
    async with reading(manager, status.id) as reader:
        for result in await asyncio.gather(*(reader.read(0, 4) for _ in range(3)), return_exceptions=True):
            assert isinstance(result, StorageFailure)
        bench.gates.failures.clear()
        assert (await reader.read(0, 4)).data == b"data"


async def test_a_slow_reader_does_not_hold_up_the_uploader_and_catches_up(bench: Bench) -> None:
    manager = await bench.start(tail_bytes=100_000, tails_total=200_000)
    uploader = Uploader(await manager.create(LINES))
    async with reading(manager, uploader.id) as slow, reading(manager, uploader.id) as quick:
        following = asyncio.create_task(follow(quick, until=ended))
        data = bytes(range(256)) * 8_000
        await uploader.send(data, chunk_size=10_007)
        await uploader.finish()
        assert await following == data
        assert manager._registry.tails.used <= 200_000
        assert await follow(slow, until=ended, piece=300_000) == data
    assert manager._registry.tails.used == 0


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(
        st.sampled_from(
            [b"\n", b"\r\n", b"short\n", b"no end", b"x" * 1000 + b"\n", b"y" * (BLOCK_SIZE - 1), b"z" * 77]
        ),
        max_size=12,
    ),
    terminal=st.booleans(),
    data=st.data(),
)
async def test_lines_and_offsets_are_those_of_the_bytes(
    memory_bench: Bench, parts: list[bytes], terminal: bool, data: st.DataObject
) -> None:
    manager = await memory_bench.start()
    content = b"".join(parts)
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(content)
    await uploader.announced()
    if terminal:
        await uploader.finish()
    starts = [0, *(index + 1 for index, byte in enumerate(content) if byte == 0x0A)]
    async with reading(manager, uploader.id) as reader:
        snapshot = reader.snapshot
        for line in range(snapshot.lines + 1):
            expected = starts[line] if line < len(starts) else len(content)
            assert await reader.line_offset(line, snapshot) == expected
        for offset in {0, len(content), *data.draw(st.lists(st.integers(0, len(content)), max_size=5))}:
            line = content.count(b"\n", 0, offset)
            assert await reader.line_at(offset, snapshot) == Position(line, starts[line])
            assert await reader.head(offset) == head_of(content[:offset])
    await uploader.ingest.release()
    await memory_bench.close()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_lines_are_found_in_any_order(memory_bench: Bench, data: st.DataObject) -> None:
    manager = await memory_bench.start()
    # Few of them in a block, many in a block, and one that has none of the ends of a block in it.
    stretches = [b"x" * 9000 + b"\n", b"short\n" * 30_000, b"y" * (2 * BLOCK_SIZE) + b"\n", b"\n" * 500, b"last"]
    content = b"".join(stretches)
    status = await upload(manager, content)
    starts = [0, *(index + 1 for index, byte in enumerate(content) if byte == 0x0A)]
    near = st.sampled_from([0, 1, 2, 1000, 20_000, len(starts) - 502, len(starts) - 501, len(starts) - 1])
    async with reading(manager, status.id) as reader:
        line = 0
        for step in data.draw(st.lists(st.integers(-3, 300) | near, max_size=20)):
            line = step if step > 300 else min(max(0, line + step), len(starts) - 1)
            assert await reader.line_offset(line, reader.snapshot) == starts[line]
            if step % 3 == 0:
                # The bytes around it, which may be in the block that was searched.
                start, end = max(0, starts[line] - step % 20), min(len(content), starts[line] + step % 70 + 1)
                piece = reader.try_read(start, end) if start < end else None
                if piece is not None:
                    assert piece.data == content[start : start + len(piece.data)]
                    assert piece.hash == chunk_hash(piece.data)
            if step % 4 == 0:
                # What was found before is not held beyond a read.
                await reader.read(starts[line] - 1 if line else 0, len(content))
    await memory_bench.close()


async def test_lines_are_looked_up_within_the_announced_size(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"one\ntwo\nthr")
    await uploader.announced()
    async with reading(manager, uploader.id) as reader:
        snapshot = reader.snapshot
        assert snapshot.lines == 2
        await uploader.send(b"ee\nfour\n")
        await uploader.announced()
        # The index is ahead of what this reader was told; its last line ends where it ended then.
        assert await reader.line_offset(2, snapshot) == 8
        with pytest.raises(LineRangeNotSatisfiable):
            await reader.line_offset(3, snapshot)
        assert await reader.line_offset(3, reader.snapshot) == 14
    await uploader.ingest.release()


async def test_bad_line_requests_are_refused(bench: Bench) -> None:
    manager = await bench.start()
    status = await upload(manager, b"one\ntwo")
    async with reading(manager, status.id) as reader:
        assert reader.line_access
        snapshot = reader.snapshot
        for line in (-1, 3):
            with pytest.raises(LineRangeNotSatisfiable) as raised:
                await reader.line_offset(line, snapshot)
            assert raised.value.lines == 2
        for offset in (-1, 8):
            with pytest.raises(RangeNotSatisfiable):
                await reader.line_at(offset, snapshot)
            with pytest.raises(RangeNotSatisfiable):
                await reader.head(offset)
        assert await reader.line_offset(2, snapshot) == 7
    binary = await upload(manager, b"one\ntwo", BINARY)
    assert binary.lines is None
    async with reading(manager, binary.id) as reader:
        assert not reader.line_access
        with pytest.raises(LineAccessDisabled):
            await reader.line_offset(0, reader.snapshot)
        with pytest.raises(LineAccessDisabled):
            await reader.line_at(0, reader.snapshot)


async def test_heads_are_answered_in_order_and_limited(bench: Bench) -> None:
    manager = await bench.start(max_heads=3)
    data = bytes(range(256)) * 2_000
    status = await upload(manager, data)
    sizes = [len(data), 0, BLOCK_SIZE + 1]
    assert await manager.heads(status.id, sizes) == tuple(head_of(data[:size]) for size in sizes)
    assert await manager.heads(status.id, []) == ()
    with pytest.raises(InvalidArgument):
        await manager.heads(status.id, [0, 1, 2, 3])
    with pytest.raises(RangeNotSatisfiable):
        await manager.heads(status.id, [0, len(data) + 1])


async def test_idle_tails_are_given_back_while_readers_stay(bench: Bench) -> None:
    manager = await bench.start(tail_idle=0.0, sweep_interval=0.01)
    uploader = Uploader(await manager.create(LINES))
    async with reading(manager, uploader.id):
        await uploader.send(b"once\n")
        assert manager._registry.tails.used > 0
        await uploader.announced()
        await turned(lambda: manager._registry.tails.used == 0)
        assert await read_all(manager, uploader.id) == b"once\n"
    await uploader.ingest.release()


async def test_nothing_is_kept_in_memory_while_nobody_reads(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))
    tails = manager._registry.tails
    await uploader.send(b"before\n")
    assert tails.used == 0
    async with reading(manager, uploader.id):
        await uploader.send(b"while\n")
        assert tails.used > 0
    await uploader.send(b"after\n")
    assert tails.used == 0
    async with reading(manager, uploader.id) as late:
        following = asyncio.create_task(follow(late, until=ended))
        await uploader.send(b"again\n")
        await uploader.finish()
        assert await following == b"before\nwhile\nafter\nagain\n"
