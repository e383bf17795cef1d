"""What a storage must do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tailrace_common_api import (
    AlreadyTerminal,
    NotFound,
    ResourceState,
)
from tailrace_server_api import (
    BLOCK_SIZE,
    Durability,
    Snapshot,
    Storage,
)
from tailrace_server_api.contracts._storage_hooks import UNKNOWN, committed, make_descriptor, text
from tailrace_server_api.contracts._storage_reading import StorageReadingContract
from tailrace_server_api.contracts._storage_writing import StorageWritingContract


@pytest.mark.asyncio
class StorageContract(StorageWritingContract, StorageReadingContract):
    """Subclass it, name the subclass ``Test…`` and implement the hooks of :class:`StorageHooks`."""

    # What a killed server leaves.

    async def test_an_announced_size_survives_a_kill(self, storage: Storage, id: str, tmp_path: Path) -> None:
        writer = await storage.open(id)
        data = b""
        for number, size in enumerate((5, BLOCK_SIZE, 300_000, 17)):
            chunk = text(size, number)
            data += chunk
            writer.append(chunk)
            announced = committed(await writer.checkpoint())
            writer.append(b"stored only" * 20_000)
            await writer.flush()
            folder = tmp_path / f"killed-{number}"
            async with self.after_kill(storage, folder) as survivor:
                assert await survivor.load(id) == announced
                assert await survivor.describe(id) == make_descriptor()
                continued = await survivor.open(id)
                assert continued.epoch == announced.epoch + 1
                assert await self.stored_bytes(survivor, id) == data
                continued.append(b"\nend")
                self.check(committed(await continued.complete()), data + b"\nend", ResourceState.COMPLETED)
                assert self.bytes_of(await survivor.read(id, 0, len(data) + 4)) == data + b"\nend"
            writer = await storage.open(id)

    async def test_an_end_survives_a_kill(self, storage: Storage, tmp_path: Path) -> None:
        finals: dict[str, Snapshot] = {}
        for number, failing in ((1, False), (2, True)):
            await storage.create(make_descriptor(number))
            writer = await self.with_bytes(storage, make_descriptor(number).id, b"some\nbytes")
            outcome = await (writer.fail("why") if failing else writer.complete())
            finals[make_descriptor(number).id] = committed(outcome)
        folder = tmp_path / "killed"
        async with self.after_kill(storage, folder) as survivor:
            for id, final in finals.items():  # noqa: A001 - what it is.
                assert await survivor.load(id) == final
                assert self.bytes_of(await survivor.read(id, 0, 10)) == b"some\nbytes"
                with pytest.raises(AlreadyTerminal):
                    await survivor.open(id)

    async def test_a_deletion_survives_a_kill(self, storage: Storage, id: str, tmp_path: Path) -> None:
        await storage.create(make_descriptor(2))
        await storage.delete(id)
        folder = tmp_path / "killed"
        async with self.after_kill(storage, folder) as survivor:
            assert [listed async for listed in survivor.ids()] == [make_descriptor(2).id]
            assert not await self.remnants(survivor, id)

    # Verifying.

    async def test_nothing_is_damaged_in_a_whole_resource(self, storage: Storage, id: str) -> None:
        data = text(2 * BLOCK_SIZE + 5)
        writer = await self.with_bytes(storage, id, b"")
        for state in (ResourceState.INITIATED, ResourceState.IN_PROGRESS, ResourceState.COMPLETED):
            if state is ResourceState.IN_PROGRESS:
                writer = await self.with_bytes(storage, id, data)
            elif state is ResourceState.COMPLETED:
                writer = await storage.open(id)
                await writer.complete()
            await writer.close()
            for repair in (False, True):
                before = await storage.load(id)
                assert before.state is state
                assert [damage async for damage in storage.verify(id, repair=repair)] == []
                assert await storage.load(id) == before
        assert self.bytes_of(await storage.read(id, 0, len(data))) == data

    @pytest.mark.parametrize("offset", [0, BLOCK_SIZE, 2 * BLOCK_SIZE - 1, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE + 4])
    async def test_damaged_bytes_are_found(self, storage: Storage, id: str, offset: int) -> None:
        writer = await self.with_bytes(storage, id, text(2 * BLOCK_SIZE + 5))
        final = committed(await writer.complete())
        await writer.close()
        await self.damage_byte(storage, id, offset)
        # Nothing proves other bytes: a repair leaves those of an ended resource as they are.
        for repair in (False, True, False):
            found = [damage async for damage in storage.verify(id, repair=repair)]
            assert [(damage.offset, damage.repaired) for damage in found] == [(offset - offset % BLOCK_SIZE, False)]
        assert await storage.load(id) == final

    async def test_an_unfinished_resource_with_damaged_bytes_is_ended_by_a_repair(
        self, storage: Storage, id: str
    ) -> None:
        data = text(2 * BLOCK_SIZE + 5)
        writer = await self.with_bytes(storage, id, data)
        await writer.close()
        await self.damage_byte(storage, id, 7)
        before = await storage.load(id)
        found = [damage async for damage in storage.verify(id)]
        assert [(damage.offset, damage.repaired) for damage in found] == [(0, False)]
        assert await storage.load(id) == before
        found = [damage async for damage in storage.verify(id, repair=True)]
        assert [(damage.offset, damage.repaired) for damage in found] == [(0, False), (None, True)]
        after = await storage.load(id)
        assert (after.state, after.reason, after.size) == (ResourceState.FAILED, "data damaged", before.size)
        assert after.version > before.version
        with pytest.raises(AlreadyTerminal):
            await storage.open(id)
        assert self.bytes_of(await storage.read(id, BLOCK_SIZE, len(data))) == data[BLOCK_SIZE:]

    async def test_verifying_an_unknown_resource_is_refused(self, storage: Storage) -> None:
        with pytest.raises(NotFound):
            await anext(storage.verify(UNKNOWN))

    # The storage as a whole.

    async def test_it_says_what_it_survives(self, storage: Storage) -> None:
        assert isinstance(storage.durability, Durability)

    async def test_closing_closes_open_writers(self, storage: Storage, id: str) -> None:
        writer = await self.with_bytes(storage, id, b"x")
        writer.append(b"y")
        await storage.close()
        await writer.close()
        await storage.close()
        assert writer.snapshot.size == 1
