"""What a storage must find, read and remove."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tailrace_common_api import (
    DamagedBlock,
    Metadata,
    NotFound,
    ResourceState,
    Visibility,
)
from tailrace_server_api import (
    BLOCK_SIZE,
    Committed,
    Descriptor,
    FencedOff,
    Storage,
)
from tailrace_server_api.contracts._storage_hooks import (
    EMPTY_HEAD,
    UNKNOWN,
    StorageHooks,
    committed,
    make_descriptor,
    text,
)


@pytest.mark.asyncio
class StorageReadingContract(StorageHooks):
    """Descriptions, bytes, boundaries, and deleting."""

    # Creating and describing.

    async def test_a_new_resource_is_empty_and_initiated(self, storage: Storage) -> None:
        snapshot = await storage.create(make_descriptor())
        assert snapshot == await storage.load(make_descriptor().id)
        assert snapshot.epoch == 0
        assert snapshot.reason is None
        self.check(snapshot, b"", ResourceState.INITIATED)
        assert snapshot.head == EMPTY_HEAD

    async def test_a_description_comes_back_as_it_was_given(self, storage: Storage) -> None:
        bare = Descriptor(
            id="7" * 32,
            metadata=Metadata(name="x"),
            visibility=Visibility.LIVE,
            created_at=0.0,
            token_hash=bytes(32),
            principal="",
        )
        for descriptor in (make_descriptor(), bare):
            await storage.create(descriptor)
            assert await storage.describe(descriptor.id) == descriptor

    async def test_a_token_is_replaced_and_nothing_else(self, storage: Storage, id: str) -> None:
        before = await storage.load(id)
        await storage.replace_token(id, b"x" * 32)
        assert await storage.describe(id) == replace(make_descriptor(), token_hash=b"x" * 32)
        assert await storage.load(id) == before

    async def test_an_unknown_id_is_not_found(self, storage: Storage) -> None:
        calls = (
            storage.describe(UNKNOWN),
            storage.replace_token(UNKNOWN, bytes(32)),
            storage.load(UNKNOWN),
            storage.open(UNKNOWN),
            storage.read(UNKNOWN, 0, 1),
            storage.boundary(UNKNOWN, 0),
            storage.boundary_of_newline(UNKNOWN, 1, 0),
            storage.delete(UNKNOWN),
        )
        for call in calls:
            with pytest.raises(NotFound):
                await call
        assert storage.read_cached(UNKNOWN, 0, 1) is None

    async def test_all_ids_are_listed(self, storage: Storage) -> None:
        descriptors = [make_descriptor(number) for number in range(20)]
        for descriptor in descriptors:
            await storage.create(descriptor)
        listed = [listed async for listed in storage.ids()]
        assert sorted(listed) == [descriptor.id for descriptor in descriptors]

    async def test_listing_leaves_creations_that_are_under_way_alone(self, storage: Storage) -> None:
        async def list_all() -> None:
            async for _ in storage.ids():
                pass

        await asyncio.gather(*(storage.create(make_descriptor(number)) for number in range(20)), list_all(), list_all())
        assert len([listed async for listed in storage.ids()]) == 20

    # Reading.

    async def test_any_range_is_read_exactly(self, storage: Storage, id: str) -> None:
        data = text(3 * BLOCK_SIZE + 100)
        writer = await self.with_bytes(storage, id, data)
        for closed in (False, True):
            if closed:
                await writer.close()
            for start, end in (
                (0, 1),
                (0, len(data)),
                (BLOCK_SIZE - 1, BLOCK_SIZE + 1),
                (0, BLOCK_SIZE),
                (0, BLOCK_SIZE + 1),
                (BLOCK_SIZE, 3 * BLOCK_SIZE),
                (2 * BLOCK_SIZE, len(data)),
                (3 * BLOCK_SIZE, len(data)),
                (17, 2 * BLOCK_SIZE + 17),
                (len(data) - 1, len(data)),
            ):
                assert self.bytes_of(await storage.read(id, start, end)) == data[start:end]
                cached = storage.read_cached(id, start, end)
                if cached is not None:
                    assert len(cached.data) >= 1
                    assert self.bytes_of(cached) == data[start : start + len(cached.data)]

    async def test_what_was_read_does_not_change_afterwards(self, storage: Storage, id: str) -> None:
        writer = await self.with_bytes(storage, id, b"first")
        read = await storage.read(id, 0, 5)
        cached = storage.read_cached(id, 0, 5)
        writer.append(b"second" * 1000)
        await writer.checkpoint()
        await storage.delete(id)
        assert self.bytes_of(read) == b"first"
        assert cached is None or self.bytes_of(cached) == b"first"[: len(cached.data)]

    async def test_what_was_appended_may_be_reused_once_it_is_stored(self, storage: Storage, id: str) -> None:
        buffer = bytearray(b"first")
        writer = await self.with_bytes(storage, id, buffer)
        buffer[:] = b"XXXXX"
        self.check(committed(await writer.complete()), b"first", ResourceState.COMPLETED)
        assert self.bytes_of(await storage.read(id, 0, 5)) == b"first"

    async def test_lost_bytes_are_told(self, storage: Storage, id: str) -> None:
        data = text(2 * BLOCK_SIZE + 100)
        writer = await self.with_bytes(storage, id, data)
        await writer.complete()
        await writer.close()
        await self.cut_bytes(storage, id, BLOCK_SIZE + 50)
        with pytest.raises(DamagedBlock) as raised:
            await storage.read(id, 0, len(data))
        assert raised.value.offset == BLOCK_SIZE
        assert self.bytes_of(await storage.read(id, 0, BLOCK_SIZE)) == data[:BLOCK_SIZE]

    async def test_boundaries_know_what_is_below_them(self, storage: Storage, id: str) -> None:
        data = text(4 * BLOCK_SIZE + 100)
        writer = await self.with_bytes(storage, id, data)
        for closed in (False, True):
            if closed:
                await writer.close()
            for offset in (0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE, len(data)):
                boundary = await storage.boundary(id, offset)
                below = data[: offset // BLOCK_SIZE * BLOCK_SIZE]
                assert boundary.offset == len(below)
                assert boundary.newlines == below.count(b"\n")
                assert boundary.spine == self.spine(below)

    async def test_boundaries_are_found_by_newline(self, storage: Storage, id: str) -> None:
        # One newline early, a block without any, many, one that is the last byte of its block.
        blocks = [b"\n".ljust(BLOCK_SIZE, b"a"), b"b" * BLOCK_SIZE, text(BLOCK_SIZE), b"c" * (BLOCK_SIZE - 1) + b"\n"]
        data = b"".join(blocks) + b"d\nd"
        await self.with_bytes(storage, id, data)
        below = [data.count(b"\n", 0, number * BLOCK_SIZE) for number in range(len(blocks) + 1)]
        total = data.count(b"\n")
        for size in (len(data), 3 * BLOCK_SIZE, 3 * BLOCK_SIZE - 1, BLOCK_SIZE, 1):
            for newlines in {1, 2, 3, below[3] - 1, below[3], below[3] + 1, total - 1, total}:
                candidates = [n for n in range(size // BLOCK_SIZE + 1) if below[n] < newlines]
                boundary = await storage.boundary_of_newline(id, newlines, size)
                assert boundary.offset == candidates[-1] * BLOCK_SIZE
                assert boundary.newlines == below[candidates[-1]]
                assert boundary.spine == self.spine(data[: boundary.offset])

    async def test_reading_goes_on_beside_writing(self, storage: Storage, id: str) -> None:
        data = text(1_500_000)
        writer = await storage.open(id)
        ended = False

        async def read_all() -> bytes:
            got = b""
            while not ended or len(got) < writer.snapshot.size:
                size = writer.snapshot.size
                if size > len(got):
                    piece = storage.read_cached(id, len(got), size) or await storage.read(id, len(got), size)
                    got += self.bytes_of(piece)
                await asyncio.sleep(0)
            return got

        readers = [asyncio.ensure_future(read_all()) for _ in range(3)]
        for start in range(0, len(data), 70_000):
            writer.append(data[start : start + 70_000])
            await writer.checkpoint()
            await asyncio.sleep(0)
        ended = True
        for got in await asyncio.gather(*readers):
            assert got == data

    # Deleting.

    async def test_nothing_is_left_of_a_deleted_resource(self, storage: Storage, id: str) -> None:
        writer = await self.with_bytes(storage, id, text(300_000))
        await storage.read(id, 0, 10)
        await writer.close()
        await storage.delete(id)
        assert not await self.remnants(storage, id)
        for call in (storage.load(id), storage.describe(id), storage.open(id), storage.read(id, 0, 1)):
            with pytest.raises(NotFound):
                await call
        with pytest.raises(NotFound):
            await storage.delete(id)
        assert storage.read_cached(id, 0, 1) is None
        assert [listed async for listed in storage.ids()] == []

    async def test_deleting_fences_the_open_writer(self, storage: Storage, id: str) -> None:
        writer = await self.with_bytes(storage, id, b"x")
        writer.append(b"y" * 500_000)
        waiting = asyncio.ensure_future(writer.checkpoint())
        await asyncio.sleep(0)
        await storage.delete(id)
        assert isinstance(await waiting, Committed | FencedOff)
        writer.append(b"z")
        assert isinstance(await writer.checkpoint(), FencedOff)
        assert isinstance(await writer.complete(), FencedOff)
        await writer.close()
        assert not await self.remnants(storage, id)

    async def test_deleting_beside_reading_leaves_nothing(self, storage: Storage, id: str) -> None:
        data = text(300_000)
        await self.with_bytes(storage, id, data)
        reads = [asyncio.ensure_future(storage.read(id, 0, len(data))) for _ in range(10)]
        await asyncio.sleep(0)
        await storage.delete(id)
        for result in await asyncio.gather(*reads, return_exceptions=True):
            if isinstance(result, BaseException):
                assert isinstance(result, NotFound)
            else:
                assert self.bytes_of(result) == data
        assert not await self.remnants(storage, id)
        assert storage.read_cached(id, 0, 1) is None
